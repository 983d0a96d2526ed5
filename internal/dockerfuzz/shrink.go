package main

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// shrink takes parts off a case as long as the same comparison still fails.
func (f *fuzzer) shrink(ctx context.Context, c *Case, found *finding, limit time.Duration) (*Case, *finding) {
	deadline := time.Now().Add(limit)
	for progress := true; progress; {
		progress = false
		for i := 0; ; i++ {
			smaller, ok := c.without(i)
			if !ok {
				break
			}
			if time.Now().After(deadline) || ctx.Err() != nil {
				return c, found
			}
			if smaller == nil {
				continue
			}
			again, err := f.check(ctx, smaller)
			if err == nil && again != nil && again.kind == found.kind {
				c, found, progress = smaller, again, true
				i-- // the next part has this number now
			}
		}
	}
	return c, found
}

func (c *Case) copy() *Case {
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // plain values can be marshalled
	}
	n := &Case{}
	if err := json.Unmarshal(text, n); err != nil {
		panic(err) // it was just written
	}
	return n
}

// without is a copy of c that lacks part i, or nil where that makes no sense;
// false when there are fewer parts.
func (c *Case) without(i int) (*Case, bool) {
	n := c.copy()
	p := &parts{left: i}
	n.reduce(p)
	switch {
	case !p.done:
		return nil, false
	case !n.sound():
		return nil, true
	}
	return n, true
}

// parts counts down to the part that goes.
type parts struct {
	left int
	done bool
}

func (p *parts) here() bool {
	if p.done {
		return false
	}
	p.left--
	p.done = p.left < 0
	return p.done
}

// cut removes the element of list whose turn it is.
func cut[T any](p *parts, list []T) []T {
	for i := range list {
		if p.here() {
			return slices.Delete(list, i, i+1)
		}
	}
	return list
}

func clear[T comparable](p *parts, v *T) {
	var zero T
	if *v != zero && p.here() {
		*v = zero
	}
}

func (c *Case) reduce(p *parts) {
	if len(c.Stages) > 1 && p.here() {
		c.Stages = c.Stages[:len(c.Stages)-1]
	}
	for i := range c.Stages {
		if i < len(c.Stages)-1 && len(c.Stages[i].Instrs) > 0 && p.here() {
			c.Stages[i].Instrs = nil
		}
		c.Stages[i].Instrs = cut(p, c.Stages[i].Instrs)
		if kind, _ := deref(c.Stages[i].From); kind == "stage" && p.here() {
			c.Stages[i].From = "base:0"
		}
	}
	c.Context, c.Ignore = cut(p, c.Context), cut(p, c.Ignore)
	for i := range c.Bases {
		b := &c.Bases[i]
		b.Layers, b.OnBuild, b.Env = cut(p, b.Layers), cut(p, b.OnBuild), cut(p, b.Env)
		for k := range b.Layers {
			b.Layers[k] = cut(p, b.Layers[k])
		}
		clear(p, &b.User)
		clear(p, &b.Workdir)
	}
	c.eachInstr(func(in *Instr) { in.reduce(p) })
	for i := range c.Context {
		c.Context[i].Inner = cut(p, c.Context[i].Inner)
		c.Context[i].reduce(p)
	}
	for i := range c.Bases {
		for _, l := range c.Bases[i].Layers {
			for k := range l {
				l[k].reduce(p)
			}
		}
	}
}

func (in *Instr) reduce(p *parts) {
	if in.Op == "RUN" {
		in.Args, in.Mounts = cut(p, in.Args), cut(p, in.Mounts)
		if in.Form == "heredoc" && p.here() {
			in.Form = "shell"
		}
		for i, a := range in.Args {
			for _, part := range strings.Split(strings.TrimSuffix(strings.TrimPrefix(a, "{ "), "; } 2>/dev/null"), "; ") {
				if part != a && p.here() {
					in.Args[i] = part
				}
			}
		}
		return
	}
	if in.Op == "COPY" || in.Op == "ADD" {
		if len(in.Args) > 1 {
			in.Args = cut(p, in.Args)
		}
		in.Inline, in.Exclude = cut(p, in.Inline), cut(p, in.Exclude)
		clear(p, &in.Chown)
		clear(p, &in.Chmod)
		clear(p, &in.Link)
		clear(p, &in.Parents)
	}
}

func (e *Entry) reduce(p *parts) {
	clear(p, &e.Cap)
	if (e.UID != 0 || e.GID != 0) && p.here() {
		e.UID, e.GID = 0, 0
	}
	if len(e.Data) > 40 && p.here() {
		e.Data = e.Data[:20]
	}
	if plain := map[Kind]uint32{File: 0o644, Dir: 0o755}[e.Kind]; plain != 0 && e.Mode != plain && p.here() {
		e.Mode = plain
	}
}

// sound reports whether the case can be written down at all.
func (c *Case) sound() bool {
	ok := len(c.Stages) > 0 && len(c.Context) > 0
	c.eachInstr(func(in *Instr) {
		switch in.Op {
		case "COPY", "ADD":
			ok = ok && len(in.Args)+len(in.Inline) > 0
		case "RUN":
			ok = ok && len(in.Args) > 0
		}
		kind, i := deref(in.From)
		ok = ok && (kind != "base" || i < len(c.Bases))
	})
	return ok && linked(c.Context) && !slices.ContainsFunc(c.Bases, func(b Base) bool { return !b.rooted() })
}

// rooted reports whether layers name the directories above what is in them.
func (b Base) rooted() bool {
	dirs := map[string]bool{}
	for _, l := range b.Layers {
		for _, e := range l {
			dirs[e.Path] = dirs[e.Path] || e.Kind == Dir
			for _, d := range above(e.Path) {
				if !dirs[d] {
					return false
				}
			}
		}
	}
	return true
}

// linked reports whether what hard links name is there.
func linked(entries []Entry) bool {
	for i, e := range entries {
		if e.Kind == Hardlink && !slices.ContainsFunc(entries[:i], func(o Entry) bool { return o.Path == e.Link }) {
			return false
		}
	}
	return true
}
