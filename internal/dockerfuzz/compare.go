package main

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// most differences are told by few lines.
const maxLines = 40

// differences compares trees; each line names a path and what differs. skip
// tells which parts of which files do not count.
func differences(a, b Tree, adjust func(p string, n *Node)) []string {
	var out []string
	paths := slices.Collect(maps.Keys(a))
	for p := range b {
		if _, both := a[p]; !both {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	for _, p := range paths {
		x, inA := a[p]
		y, inB := b[p]
		if skipped(p) {
			continue
		}
		if !inA || !inB {
			out = append(out, fmt.Sprintf("%q: %s against %s", p, presence(x, inA), presence(y, inB)))
			continue
		}
		x.inode, y.inode = nil, nil
		adjust(p, &x)
		adjust(p, &y)
		if x != y {
			out = append(out, fmt.Sprintf("%q: %+v against %+v", p, x, y))
		}
	}
	return out
}

func presence(n Node, there bool) string {
	if !there {
		return "nothing"
	}
	return string(n.Kind)
}

// skipped are the places that builders mount something over, copies of them,
// and the root, whose entry is not in all images.
func skipped(p string) bool {
	return p == "" || slices.ContainsFunc(strings.Split(p, "/"), func(name string) bool {
		return name == "proc" || name == "sys" || name == "dev"
	})
}

// exact compares everything that modes of one builder have in common.
func exact(string, *Node) {}

// loose is for builders that work differently.
func (c *Case) loose(hardlinks bool) func(string, *Node) {
	renames, touches := c.scripts("mv "), c.scripts("touch ") || c.redone()
	return func(_ string, n *Node) {
		// Directories' times change with what is made in them, which may be
		// mount points or temporary files, or nothing in overlayfs.
		if n.Kind == Dir {
			n.Time = 0
		}
		// Where overlayfs has a directory in a layer below, busybox moves it by
		// a copy, which loses links, capabilities and the times of links.
		if renames {
			n.Cap, n.Group = "", ""
			if n.Kind != File {
				n.Time = 0
			}
		}
		// COPY --from is found by content: it may bring an equal file's time. And
		// BuildKit's extraction sets the times of directories at the end, though
		// something else is there by then.
		if touches {
			n.Time = 0
		}
		// A link to a file of a layer below is a copy in the image.
		if !hardlinks {
			n.Group = ""
		}
	}
}

// redone reports whether an archive has a name twice.
func (c *Case) redone() bool {
	return slices.ContainsFunc(c.Context, func(e Entry) bool {
		seen := map[string]bool{}
		for _, m := range e.Inner {
			p := path.Clean("/" + m.Path)
			if seen[p] {
				return true
			}
			seen[p] = true
		}
		return false
	})
}

// scripts reports whether a script contains text.
func (c *Case) scripts(text string) bool {
	return c.has(func(in *Instr) bool { return in.Op == "RUN" && strings.Contains(in.script(), text) })
}

// linked reports whether a script may write to a file that has several names in
// a lower layer.
func (c *Case) linked() bool {
	link := func(e Entry) bool {
		return e.Kind == Hardlink || slices.ContainsFunc(e.Inner, func(e Entry) bool { return e.Kind == Hardlink })
	}
	found := slices.ContainsFunc(c.Context, link)
	for _, b := range c.Bases {
		for _, l := range b.Layers {
			found = found || slices.ContainsFunc(l, link)
		}
	}
	return c.scripts("") && (found || c.scripts("ln /"))
}

// eachInstr calls f for all instructions, triggers included.
func (c *Case) eachInstr(f func(*Instr)) {
	visit := func(list []Instr) {
		for i := range list {
			f(&list[i])
			if list[i].Trigger != nil {
				f(list[i].Trigger)
			}
		}
	}
	for i := range c.Bases {
		visit(c.Bases[i].OnBuild)
	}
	for i := range c.Stages {
		visit(c.Stages[i].Instrs)
	}
}

// compareModes compares images of two modes of the builder.
func (c *Case) compareModes(a, b *Image) []string {
	out := compareConfigs(a, b)
	for i := range min(len(a.Layers), len(b.Layers)) {
		if a.Layers[i] != b.Layers[i] && !c.scripts("touch ") && !c.scripts("mv ") {
			out = append(out, fmt.Sprintf("layer %d:\n%s", i, diffLines(a.Layers[i], b.Layers[i])))
		}
	}
	if len(a.Layers) != len(b.Layers) {
		out = append(out, fmt.Sprintf("%d layers against %d", len(a.Layers), len(b.Layers)))
	}
	return append(out, differences(a.Flat, b.Flat, c.among())...)
}

// among adjusts for modes of the builder.
func (c *Case) among() func(string, *Node) {
	if c.scripts("touch ") || c.scripts("mv ") {
		return c.loose(true)
	}
	return exact
}

func compareConfigs(a, b *Image) []string {
	var out []string
	keys := slices.Collect(maps.Keys(a.Config))
	for k := range b.Config {
		if _, both := a.Config[k]; !both {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if x, y := fmt.Sprint(a.Config[k]), fmt.Sprint(b.Config[k]); x != y {
			out = append(out, fmt.Sprintf("config %s: %s against %s", k, x, y))
		}
	}
	if !slices.Equal(a.History, b.History) {
		out = append(out, "history:\n"+diffLines(strings.Join(a.History, "\n"), strings.Join(b.History, "\n")))
	}
	return out
}

// diffLines lists the lines that only one of the texts has.
func diffLines(a, b string) string {
	var out strings.Builder
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for _, l := range x {
		if !slices.Contains(y, l) {
			out.WriteString("  - " + l + "\n")
		}
	}
	for _, l := range y {
		if !slices.Contains(x, l) {
			out.WriteString("  + " + l + "\n")
		}
	}
	if out.Len() == 0 {
		return "  the order of lines\n"
	}
	return out.String()
}

func clip(lines []string) string {
	if len(lines) > maxLines {
		lines = append(lines[:maxLines:maxLines], fmt.Sprintf("and %d more", len(lines)-maxLines))
	}
	return strings.Join(lines, "\n")
}
