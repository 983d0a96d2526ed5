package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// edited is the case with some files of the context changed, as the same seed
// changes them each time: other bytes or as many others, other modes and targets,
// files that go and files that come. At times an instruction goes too.
func (c *Case) edited() *Case {
	g := rand.New(rand.NewPCG(c.Seed, 0x65646974))
	n := c.copy()
	named := func(p string) bool { // by a hard link
		return slices.ContainsFunc(c.Context, func(e Entry) bool { return e.Kind == Hardlink && e.Link == p })
	}
	var out []Entry
	for i, e := range n.Context {
		switch {
		case g.IntN(3) > 0:
		case e.Kind == File && g.IntN(4) == 0 && !named(e.Path) && i > 0: // a context is never empty
			continue
		case e.Kind == File || e.Kind == Dir || e.Kind == Symlink:
			edit(g, &e)
		case e.Kind == Archive:
			e.Inner = slices.DeleteFunc(slices.Clone(e.Inner), func(m Entry) bool {
				return m.Kind == File && g.IntN(2) == 0 && !slices.ContainsFunc(e.Inner, func(l Entry) bool { return l.Link == m.Path })
			})
		}
		out = append(out, e)
		if e.Kind == Dir && g.IntN(3) == 0 {
			out = append(out, Entry{Path: e.Path + "/zz-new", Kind: File, Mode: 0o644, Data: "new\n", Time: fileTime("new\n")})
		}
	}
	n.Context = out
	if s := &n.Stages[g.IntN(len(n.Stages))]; len(s.Instrs) > 1 && g.IntN(3) == 0 {
		i := g.IntN(len(s.Instrs))
		s.Instrs = slices.Delete(s.Instrs, i, i+1)
	}
	return n
}

func edit(g *rand.Rand, e *Entry) {
	switch {
	case e.Kind == Symlink:
		e.Link = path.Join("zz", e.Link)
	case e.Kind == Dir || g.IntN(3) == 0:
		e.Mode ^= 0o011
	case g.IntN(2) == 0:
		e.Data = strings.ToUpper(e.Data) + "."
		e.Time = fileTime(e.Data)
	default: // of the same size and time
		e.Data = strings.Map(func(r rune) rune {
			if r == '.' {
				return ','
			}
			return r
		}, e.Data)
	}
}

// checkEdit builds once more after the case has changed, on top of what is cached,
// and carries that out by hand. It comes last: the files stay so.
func (f *fuzzer) checkEdit(ctx context.Context, c *Case, j *job, first outcome) (*finding, error) {
	if !f.modes || !f.plain || first.image == nil {
		return nil, nil
	}
	e := c.edited()
	if err := rewrite(j.context, withIgnoreFile(c).Context, withIgnoreFile(e).Context); err != nil {
		return nil, err
	}
	if err := os.WriteFile(j.dockerfile, []byte(e.dockerfile(j.images)), 0o644); err != nil {
		return nil, err
	}
	h, err := f.byHand(e, filepath.Join(j.dir, "edited"))
	if err != nil || h.hangs() {
		return nil, err
	}
	for _, driver := range []string{"overlay", "plain"} {
		if driver == "plain" && c.linked() {
			continue
		}
		next, err := f.build(ctx, f.mode(driver, false), j)
		if err != nil {
			return nil, err
		}
		if found := h.against(e, next); found != nil {
			return &finding{"edit " + driver, "after a change: " + found.text}, nil
		}
	}
	return nil, nil
}

// rewrite makes the files of a context what they are to be, and leaves alone
// those that are already.
func rewrite(dir string, from, to []Entry) error {
	if slices.ContainsFunc(from, func(e Entry) bool { return e.Kind == Hardlink }) {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		return writeContext(dir, to)
	}
	for _, e := range from {
		if slices.ContainsFunc(to, func(o Entry) bool {
			return e.equal(o) || e.Path == o.Path && e.Kind == o.Kind && (e.Kind == File || e.Kind == Dir) // written in place
		}) {
			continue
		}
		// With it go the directories that are there for it alone.
		for _, p := range slices.Backward(append(above(e.Path), e.Path)) {
			if p != e.Path && slices.ContainsFunc(to, func(o Entry) bool { return o.Path == p || strings.HasPrefix(o.Path, p+"/") }) {
				break
			}
			if err := os.Remove(filepath.Join(dir, p)); err != nil {
				if p != e.Path && errors.Is(err, unix.ENOTEMPTY) {
					break // what is in it goes later
				}
				return err
			}
		}
	}
	var changed []Entry
	for _, e := range to {
		if !slices.ContainsFunc(from, func(b Entry) bool { return e.equal(b) }) {
			changed = append(changed, e)
		}
	}
	return writeContext(dir, changed)
}
