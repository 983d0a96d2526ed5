package main

import (
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
)

// generator makes a case. All comes from one seeded source, so that a seed
// gives the same case everywhere.
type generator struct {
	*rand.Rand
	c        *Case
	serial   int      // makes contents differ
	contexts []string // paths of the context, directories with a slash after them
	links    bool     // there are hard links
	places   []string // paths of images that occurred already: later ones should meet them
}

// Generate makes the case of a seed.
func Generate(seed uint64) *Case {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0x6275696c64)), c: &Case{Seed: seed}}
	g.links = g.chance(40)
	for range 1 + g.IntN(2) {
		p := g.often(30, 4)
		g.c.Bases = append(g.c.Bases, p.base())
		g.meet(p)
	}
	p := g.often(20, 3)
	p.context()
	g.c.Context, g.c.Ignore, g.contexts = p.c.Context, p.c.Ignore, p.contexts
	g.meet(p)
	for i := range 1 + g.IntN(3) {
		g.c.Stages = append(g.c.Stages, g.stage(i))
	}
	return g.c
}

// often is g, or with that chance one of few generators that many cases use: they
// share a state directory, and what one has cached another must not take for
// something else.
func (g *generator) often(percent, few int) *generator {
	if !g.chance(percent) {
		return g
	}
	k := uint64(g.IntN(few))
	return &generator{
		Rand: rand.New(rand.NewPCG(k, 0x6f6674656e)), c: &Case{Seed: k}, links: g.links,
		places: []string{"/a", "/b/c", "/sub"},
	}
}

// meet lets what comes next use the places that p has.
func (g *generator) meet(p *generator) {
	if p != g {
		g.places = append(g.places, p.places...)
	}
}

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

// names are few, so that paths meet; long is as long as a name can be.
var (
	names = []string{"a", "b", "c", "d", "e.txt", "f.go", "sub", "lnk", "é", ".hid"}
	long  = strings.Repeat("n", 255)
)

func (g *generator) name() string {
	switch {
	case g.chance(2):
		return long
	case g.chance(2):
		return "sp ace"
	}
	return pick(g, names...)
}

// relative is a relative path of one to three names.
func (g *generator) relative() string {
	p := g.name()
	for range g.IntN(3) {
		p += "/" + g.name()
	}
	return p
}

// place is an absolute path in an image, often one that occurred.
func (g *generator) place() string {
	if len(g.places) > 0 && g.chance(60) {
		p := pick(g, g.places...)
		switch g.IntN(4) {
		case 0:
			return path.Dir(p)
		case 1:
			return path.Join(p, g.name())
		}
		return p
	}
	p := "/" + g.relative()
	g.places = append(g.places, p)
	return p
}

// short is a place that fits into a script: no spaces.
func (g *generator) short() string {
	for {
		if p := g.place(); p != "/" && !strings.ContainsAny(p, " \t") {
			return p
		}
	}
}

func (g *generator) content() string {
	g.serial++
	return fmt.Sprintf("%x.%d%s\n", g.c.Seed, g.serial, strings.Repeat("x", g.IntN(2)*g.IntN(30)))
}

// fileTime depends on what is in a file alone: a step that hits by content may
// bring the times of an equal file.
func fileTime(data string) int64 {
	t := int64(1_000_000_000)
	for _, b := range []byte(data) {
		t = (t*31+int64(b))%300_000_000 + 1_000_000_000
	}
	return t
}

const otherTime = 1_234_567_890 // of what has no contents

// meta gives an entry odd modes and owners.
func (g *generator) meta(e *Entry) {
	switch e.Kind {
	case Dir:
		e.Mode = pick[uint32](g, 0o755, 0o755, 0o755, 0o700, 0o1777, 0o2775, 0o555)
	case Symlink:
		e.Mode = 0o777
	default:
		e.Mode = pick[uint32](g, 0o644, 0o644, 0o755, 0o600, 0o4755, 0o2755, 0o444, 0)
	}
	if g.chance(30) {
		e.UID, e.GID = pick(g, 0, 1000, 12, 70000), pick(g, 0, 1000, 2000, 70001)
	}
	e.Time = otherTime
	if e.Kind == File {
		e.Time = fileTime(e.Data)
	}
}

func (g *generator) target() string {
	return pick(g, g.name(), "../"+g.name(), "/"+g.relative(), "../../../"+g.relative(), "missing", ".", "/")
}

// model knows the entries of a tree under construction: what is added has real
// directories above it.
type model map[string]Kind

// allows reports whether an entry can be put at p.
func (m model) allows(p string) bool {
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		if k, ok := m[d]; ok && k != Dir {
			return false
		}
	}
	return true
}

func (m model) remove(p string) {
	for q := range m {
		if q == p || strings.HasPrefix(q, p+"/") {
			delete(m, q)
		}
	}
}

// files are the regular files, sorted: a map's order is not the seed's.
func (m model) files() []string {
	var out []string
	for p, k := range m {
		if k == File {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

func (g *generator) base() Base {
	b := Base{}
	m := model{}
	for range g.IntN(4) {
		if g.chance(10) { // nothing, as what many steps change
			b.Layers = append(b.Layers, nil)
			continue
		}
		b.Layers = append(b.Layers, g.layer(m))
	}
	if g.chance(20) {
		b.Env = []string{"FROMBASE=" + g.name()}
	}
	if g.chance(10) {
		b.User = pick(g, "bob", "1000:2000", "12")
	}
	if g.chance(20) {
		b.Workdir = "/" + g.name()
	}
	if g.chance(15) {
		b.OnBuild = append(b.OnBuild, g.run(-1))
	}
	return b
}

// layer makes a layer on top of m, and puts it into m.
func (g *generator) layer(m model) []Entry {
	var out []Entry
	seen := map[string]bool{}
	lower := func(p string) bool { _, ok := m[p]; return ok && !seen[p] }
	for range 1 + g.IntN(8) {
		p := g.relative()
		if seen[p] || !m.allows(p) || slices.ContainsFunc(out, func(o Entry) bool {
			// What comes back in the same layer is not empty in BuildKit.
			return o.Kind == Whiteout && strings.HasPrefix(p, o.Path+"/")
		}) {
			continue
		}
		e := Entry{Path: p, Kind: pick(g, File, File, File, Dir, Dir, Symlink, Symlink, Hardlink, Fifo, Device, Whiteout, Opaque)}
		if e.Kind == Hardlink && !g.links {
			continue
		}
		switch e.Kind {
		case File:
			e.Data, e.Cap = g.content(), g.chance(10)
		case Symlink:
			e.Link = g.target()
		case Hardlink:
			i := slices.IndexFunc(out, func(o Entry) bool { return o.Kind == File })
			if i >= 0 {
				e = out[i]
				e.Path, e.Kind, e.Link, e.Data = p, Hardlink, out[i].Path, ""
			} else if files := m.files(); len(files) > 0 && g.chance(20) {
				e.Link = pick(g, files...) // in a layer below: not all builders can do that
			}
			if e.Link == "" || m[p] != "" {
				continue
			}
		case Whiteout:
			if !lower(p) || slices.ContainsFunc(out, func(o Entry) bool { return strings.HasPrefix(o.Path, p+"/") }) {
				continue
			}
		case Opaque:
			// It comes before what is in the directory: readers differ on the rest.
			if !lower(p) || m[p] != Dir || slices.ContainsFunc(out, func(o Entry) bool { return strings.HasPrefix(o.Path, p+"/") }) {
				continue
			}
		}
		if m[p] != "" && m[p] == Dir != (e.Kind == Dir) && slices.ContainsFunc(out, func(o Entry) bool { return strings.HasPrefix(o.Path, p+"/") }) {
			continue // would take away what this layer brings
		}
		if e.Kind != Hardlink || g.chance(25) { // mostly a link has the meta of what it links to
			g.meta(&e)
		}
		for _, d := range above(p) { // layers name the directories above
			if m[d] == "" {
				parent := Entry{Path: d, Kind: Dir}
				g.meta(&parent)
				g.add(m, &out, parent)
				seen[d] = true
			}
		}
		g.add(m, &out, e)
		seen[p] = true
	}
	return out
}

// above are the directories above p, the highest first.
func above(p string) []string {
	var out []string
	for d := path.Dir(p); d != "." && d != "/"; d = path.Dir(d) {
		out = append([]string{d}, out...)
	}
	return out
}

// add appends e and what it does to m.
func (g *generator) add(m model, out *[]Entry, e Entry) {
	for d := path.Dir(e.Path); d != "."; d = path.Dir(d) {
		m[d] = Dir
	}
	switch e.Kind {
	case Whiteout:
		m.remove(e.Path)
	case Opaque:
		m.remove(e.Path)
		m[e.Path] = Dir
	case Dir:
		if m[e.Path] != Dir {
			m.remove(e.Path)
		}
		m[e.Path] = Dir
	default:
		m.remove(e.Path)
		m[e.Path] = e.Kind
		if e.Kind == Hardlink {
			m[e.Path] = File
		}
	}
	g.places = append(g.places, "/"+e.Path)
	*out = append(*out, e)
}

func (g *generator) context() {
	m := model{}
	// BuildKit has no root directory in an empty context.
	g.add(m, &g.c.Context, Entry{Path: "keep", Kind: File, Mode: 0o644, Time: otherTime})
	for range 2 + g.IntN(10) {
		p := g.relative()
		if !m.allows(p) || m[p] != "" {
			continue
		}
		e := Entry{Path: p, Kind: pick(g, File, File, File, File, Dir, Symlink, Hardlink, Archive, Fifo)}
		if e.Kind == Hardlink && !g.links {
			continue
		}
		switch e.Kind {
		case File:
			e.Data, e.Cap = g.content(), g.chance(5)
		case Symlink:
			e.Link = g.target()
		case Hardlink:
			files := m.files()
			if len(files) == 0 {
				continue
			}
			e.Link = pick(g, files...)
		case Archive:
			e.Inner, e.Gzip = g.members(), g.chance(50)
		}
		g.meta(&e)
		g.add(m, &g.c.Context, e)
	}
	for p, k := range m {
		if k == Dir {
			p += "/"
		}
		g.contexts = append(g.contexts, p)
	}
	slices.Sort(g.contexts)
	if g.chance(35) {
		for range 1 + g.IntN(3) {
			p := pick(g, "*", "**/", "", "", "") + pick(g, strings.TrimSuffix(g.contextPath(), "/"), g.name(), "*.go", "sub/*", "*/sub")
			g.c.Ignore = append(g.c.Ignore, pick(g, "", "", "!", "/")+strings.ReplaceAll(p, "***", "**"))
		}
	}
}

// contextPath is a path of the context, mostly one that is there.
func (g *generator) contextPath() string {
	if len(g.contexts) == 0 || g.chance(5) {
		return g.name()
	}
	return pick(g, g.contexts...)
}

// members are an archive's: names that leave it, links that lead out of it and
// the same name twice are among them.
func (g *generator) members() []Entry {
	var out []Entry
	for range 1 + g.IntN(6) {
		e := Entry{Path: pick(g, "", "", "", "./", "/", "../", "../../") + g.relative(), Kind: pick(g, File, File, File, Dir, Symlink, Hardlink, Fifo)}
		if e.Kind == Hardlink && !g.links {
			continue
		}
		switch e.Kind {
		case File:
			e.Data = g.content()
		case Symlink:
			e.Link = g.target()
		case Hardlink:
			i := slices.IndexFunc(out, func(o Entry) bool { return o.Kind == File })
			if i < 0 {
				continue
			}
			e.Link = out[i].Path
		}
		g.meta(&e)
		out = append(out, e)
	}
	return out
}
