package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

func (f *fuzzer) checkPeers(ctx context.Context, c *Case, j *job, first outcome) (*finding, error) {
	if len(f.peers) > 0 && c.lowerLinks() {
		return nil, nil // BuildKit does not find the file
	}
	for _, b := range f.peers {
		if b.name() == "buildah" && c.modern() {
			continue
		}
		theirs, err := f.build(ctx, b, j)
		if err != nil {
			return nil, err
		}
		if theirs.image == nil && c.stricter(b.name(), theirs.log) || first.image == nil && c.laxer(b.name(), first.log) {
			continue
		}
		if v := verdict(first, theirs, b.name()); v != nil {
			return v, nil
		}
		if first.image == nil || first.image.rootMode() {
			continue
		}
		if d := c.comparePeer(first.image, theirs.image, b.name()); len(d) > 0 {
			return &finding{"peer " + b.name(), fmt.Sprintf("build against %s:\n%s", b.name(), clip(d))}, nil
		}
	}
	return nil, nil
}

// lowerLinks reports whether a base's layer links to a file of a lower one.
func (c *Case) lowerLinks() bool {
	return slices.ContainsFunc(c.Bases, func(b Base) bool {
		return slices.ContainsFunc(b.Layers, func(l []Entry) bool { return !linked(l) })
	})
}

// modern reports whether the case has what Buildah does not know, or only in
// versions that distributions do not have yet.
func (c *Case) modern() bool {
	return c.has(func(in *Instr) bool {
		return in.Link || in.Parents || len(in.Exclude)+len(in.Inline) > 0 || in.Form == "heredoc" || strings.ContainsAny(in.Chmod, "+-=")
	})
}

// quirk is a failure of a peer's where nothing stands against building: what
// its log says, and which instructions it is about.
type quirk struct {
	says  []string // all of them
	about func(in *Instr) bool
}

var buildahQuirks = []quirk{
	// Of an image, it takes a pattern that matches nothing for an error.
	{[]string{"checking on sources under"}, func(in *Instr) bool { return in.copies() && slices.ContainsFunc(in.Args, wild) }},
}

var buildkitQuirks = []quirk{
	// Of a context it is sent only what patterns match, and so does not find
	// the directory of a pattern that matches nothing in it.
	{[]string{"lstat /", "no such file or directory"}, func(in *Instr) bool {
		return in.copies() && in.From == "" && slices.ContainsFunc(in.Args, wild)
	}},
	// With --exclude, or of what patterns of --parents match, it demands that links
	// in the top of a context lead somewhere.
	{[]string{"failed to calculate checksum"}, func(in *Instr) bool { return in.copies() && (in.Parents || len(in.Exclude) > 0) }},
	// It looks up at the destination what --parents does not even name.
	{[]string{"failed to stat", "not a directory"}, func(in *Instr) bool { return in.copies() && in.Parents }},
	// It makes no directories of an archive below a link that leads nowhere.
	{[]string{"mkdir /", "file exists"}, func(in *Instr) bool { return in.Op == "ADD" }},
	{[]string{"open /", "no such file or directory"}, func(in *Instr) bool { return in.Op == "ADD" }},
	// It misses a directory of an archive that a later member takes the place of.
	{[]string{"chtimes "}, func(in *Instr) bool { return in.Op == "ADD" }},
	// It follows a link to itself that --parents takes as it is.
	{[]string{"too many links"}, func(in *Instr) bool { return in.copies() && in.Parents }},
	// runc mounts a tmpfs over a link, and looks for it where the link is.
	{[]string{`error mounting "tmpfs"`}, func(in *Instr) bool {
		return slices.ContainsFunc(in.Mounts, func(m Mount) bool { return m.Type == "tmpfs" })
	}},
}

func (in *Instr) copies() bool { return in.Op == "COPY" || in.Op == "ADD" }

// stricter reports whether a peer fails for one of its quirks.
func (c *Case) stricter(peer, log string) bool {
	found, quirks := false, buildkitQuirks
	if peer == "buildah" {
		quirks = buildahQuirks
	}
	for _, q := range quirks {
		if slices.ContainsFunc(q.says, func(s string) bool { return !strings.Contains(log, s) }) {
			continue
		}
		found = found || c.has(q.about)
	}
	return found
}

// laxer reports whether a peer builds where something is missing: BuildKit does
// not look for what COPY --parents names in the very image that it builds upon.
func (c *Case) laxer(peer, log string) bool {
	return c.has(func(in *Instr) bool { return in.Parents && in.From != "" }) && (peer == "buildctl" || peer == "docker") && strings.Contains(log, "not found")
}

// comparePeer compares with another builder's image.
func (c *Case) comparePeer(a, b *Image, peer string) []string {
	var out []string
	if peer != "buildah" { // writes history and config in its own way
		out = compareConfigs(a, b)
		if len(a.Layers) != len(b.Layers) {
			out = append(out, fmt.Sprintf("%d layers against %d", len(a.Layers), len(b.Layers)))
		}
	}
	c.dropStubs(a.Flat, b.Flat)
	if peer == "buildah" { // leaves what it mounted over
		for _, p := range []string{"etc/hostname", "etc/hosts", "etc/resolv.conf", "etc", "run/.containerenv", "run/secrets", "run"} {
			b.Flat.dropEmpty(p)
		}
	}
	adjust := c.loose(peer != "buildah")
	if peer != "buildah" {
		return append(out, differences(a.Flat, b.Flat, adjust)...)
	}
	chowns := c.has(func(in *Instr) bool { return in.Chown != "" })
	chmods := c.has(func(in *Instr) bool { return in.Chmod != "" })
	return differences(a.Flat, b.Flat, func(p string, n *Node) {
		adjust(p, n)
		if chowns { // after the mode has been set
			n.Mode &^= 0o6000
		}
		if chmods && n.Kind == Dir { // those that are there too
			n.Mode = 0
		}
	})
}

// rootMode reports whether a step has changed the mode of the root, which in
// BuildKit is 755 for the next step whatever the layers say.
func (im *Image) rootMode() bool {
	return slices.ContainsFunc(im.Layers, func(l string) bool {
		return strings.Contains("\n"+l, "\n5 \"./\" ") && !strings.Contains("\n"+l, "\n5 \"./\" 755 ")
	})
}

func (c *Case) has(what func(*Instr) bool) bool {
	found := false
	c.eachInstr(func(in *Instr) { found = found || what(in) })
	return found
}

// dropStubs takes an empty directory out of the trees that only one of them has
// and that leads to a mount. BuildKit takes a working directory that the image
// lacks for such a mount point too, and removes it.
func (c *Case) dropStubs(a, b Tree) {
	c.eachInstr(func(in *Instr) {
		for _, m := range in.Mounts {
			all := append(above(m.Target[1:]), m.Target[1:])
			for _, p := range slices.Backward(all) {
				_, inA := a[p]
				_, inB := b[p]
				if inA != inB {
					a.dropEmpty(p)
					b.dropEmpty(p)
				}
			}
		}
	})
}

// dropEmpty removes a file or directory with nothing in it.
func (t Tree) dropEmpty(p string) {
	if n := t[p]; n.Kind != Dir && n.Sum != sum(nil) {
		return
	}
	for q := range t {
		if strings.HasPrefix(q, p+"/") {
			return
		}
	}
	delete(t, p)
}
