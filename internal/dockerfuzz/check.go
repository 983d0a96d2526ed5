package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// finding is a difference that should not be.
type finding struct {
	kind string // which comparison: the shrinker keeps to it
	text string
}

// fuzzer has what all cases use.
type fuzzer struct {
	binary string
	dir    string
	common string // the bottom of all bases, as a directory
	images *images
	peers  []builder
	modes  bool // compare the builder's own modes
	plain  bool // compare with the plain machine
	builds atomic.Int64
	theirs atomic.Int64 // of the builds, those of other builders
	failed atomic.Int64 // cases whose build fails, as it should
	serial atomic.Int64

	use   sync.RWMutex // held for reading while a case uses the roots
	cases atomic.Int64
}

// caseLimit is how many cases share a state directory before it is made anew:
// the plain driver keeps many copies.
const caseLimit = 60

func (f *fuzzer) root(driver string) string { return filepath.Join(f.dir, "root-"+driver) }

// renew empties the state directories from time to time.
func (f *fuzzer) renew() error {
	if f.cases.Add(1)%caseLimit != 0 {
		return nil
	}
	f.use.Lock()
	defer f.use.Unlock()
	return errors.Join(os.RemoveAll(f.root("overlay")), os.RemoveAll(f.root("plain")))
}

// write puts the case on disk.
func (f *fuzzer) write(c *Case) (*job, error) {
	name, err := f.images.publish(c)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(f.dir, fmt.Sprintf("case%d", f.serial.Add(1)))
	j := &job{dir: dir, context: filepath.Join(dir, "context"), dockerfile: filepath.Join(dir, "file", "Dockerfile"), images: name}
	for _, d := range []string{j.context, filepath.Dir(j.dockerfile)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(j.dockerfile, []byte(c.dockerfile(name)), 0o644); err != nil {
		return nil, err
	}
	if err := writeContext(j.context, c.Context); err != nil {
		return nil, err
	}
	if len(c.Ignore) > 0 {
		err = os.WriteFile(filepath.Join(j.context, ".dockerignore"), []byte(strings.Join(c.Ignore, "\n")+"\n"), 0o644)
		if err == nil {
			err = setTime(j.context, otherTime)
		}
	}
	return j, err
}

// generate makes the case of a seed. One in eight may fail in any way; the
// others lose the instructions that fail.
func (f *fuzzer) generate(seed uint64) (*Case, error) {
	c := Generate(seed)
	if seed%8 == 0 {
		return c, nil
	}
	dir := filepath.Join(f.dir, fmt.Sprintf("mend%d", f.serial.Add(1)))
	return c, errors.Join(mend(c, dir, f.common), os.RemoveAll(dir))
}

// check builds a case in all ways. Errors are about the fuzzer's own work, or a
// builder that crashed.
func (f *fuzzer) check(ctx context.Context, c *Case) (*finding, error) {
	if err := f.renew(); err != nil {
		return nil, err
	}
	f.use.RLock()
	defer f.use.RUnlock()
	j, err := f.write(c)
	if err != nil {
		return nil, fmt.Errorf("write case: %w", err)
	}
	defer os.RemoveAll(j.dir)
	if f.plain {
		if j.hand, err = f.byHand(c, filepath.Join(j.dir, "machine")); err != nil || j.hand.hangs() {
			return nil, err
		}
	}
	first, err := f.build(ctx, f.mode("overlay", false), j)
	if err != nil {
		return nil, err
	}
	for _, look := range []func(context.Context, *Case, *job, outcome) (*finding, error){
		f.checkModes, f.checkBounded, f.checkCache, f.checkHalves, f.checkPlain, f.checkPeers, f.checkEdit,
	} {
		if found, err := look(ctx, c, j, first); found != nil || err != nil {
			return found, err
		}
	}
	if first.image == nil {
		f.failed.Add(1)
	}
	return nil, nil
}

func (f *fuzzer) mode(driver string, noCache bool) ours {
	return ours{binary: f.binary, driver: driver, root: f.root(driver), noCache: noCache}
}

func (f *fuzzer) build(ctx context.Context, b builder, j *job) (outcome, error) {
	f.builds.Add(1)
	if _, own := b.(ours); !own {
		f.theirs.Add(1)
	}
	return b.build(ctx, j)
}

// verdict finds that one build failed and the other did not.
func verdict(a, b outcome, name string) *finding {
	switch {
	case a.image == nil && b.image != nil:
		return &finding{"failure " + name, name + " builds what fails here:\n" + a.log}
	case a.image != nil && b.image == nil:
		return &finding{"failure " + name, name + " fails:\n" + b.log}
	}
	return nil
}

func (f *fuzzer) checkModes(ctx context.Context, c *Case, j *job, first outcome) (*finding, error) {
	if !f.modes {
		return nil, nil
	}
	before := first
	for _, b := range []builder{f.mode("overlay", true), f.mode("plain", false), f.mode("plain", true)} {
		next, err := f.build(ctx, b, j)
		if err != nil {
			return nil, err
		}
		if v := verdict(before, next, b.name()); v != nil {
			return v, nil
		}
		// The plain driver keeps the names of a lower layer's file together
		// (see its package's comment): what follows is compared with itself.
		if b.name() == "plain" && c.linked() {
			before = next
		}
		if first.image == nil {
			continue
		}
		if d := c.compareModes(before.image, next.image); len(d) > 0 {
			return &finding{"mode " + b.name(), fmt.Sprintf("another mode against %s:\n%s", b.name(), clip(d))}, nil
		}
	}
	return nil, nil
}

// checkCache builds again: the same, and with a change that concerns no step.
func (f *fuzzer) checkCache(ctx context.Context, c *Case, j *job, first outcome) (*finding, error) {
	if !f.modes || first.image == nil {
		return nil, nil
	}
	// --no-cache renewed the records, so that the image may have changed.
	again, err := f.build(ctx, f.mode("overlay", false), j)
	if err != nil {
		return nil, err
	}
	for _, change := range []string{"", "zz-unrelated"} {
		if change != "" {
			if !c.unrelated() {
				break
			}
			if err := os.WriteFile(filepath.Join(j.context, change), nil, 0o644); err != nil {
				return nil, err
			}
		}
		next, err := f.build(ctx, f.mode("overlay", false), j)
		if err != nil {
			return nil, err
		}
		what := "cache" + change
		switch {
		case again.image == nil || next.image == nil:
			return &finding{what, "a cached build fails:\n" + again.log + next.log}, nil
		case len(next.steps) > 0:
			return &finding{what, "steps ran in a cached build: " + strings.Join(next.steps, ", ")}, nil
		case next.image.ID != again.image.ID:
			return &finding{what, "a cached build gives another image:\n" + clip(c.compareModes(again.image, next.image))}, nil
		}
	}
	if change := filepath.Join(j.context, "zz-unrelated"); c.unrelated() {
		if err := os.Remove(change); err != nil {
			return nil, err
		}
		return nil, setTime(j.context, otherTime)
	}
	return nil, nil
}

// unrelated reports whether a new file in the context's top concerns no step.
func (c *Case) unrelated() bool {
	ok := !slices.ContainsFunc(c.Context, func(e Entry) bool { // no link brings the top in
		return e.Kind == Symlink && (path.Clean("/"+e.Link) == "/" || path.Join("/", path.Dir(e.Path), e.Link) == "/")
	})
	c.eachInstr(func(in *Instr) {
		for _, m := range in.Mounts {
			ok = ok && (m.Type != "bind" || m.From != "")
		}
		if in.Op != "COPY" && in.Op != "ADD" || in.From != "" {
			return
		}
		for _, a := range in.Args {
			first, _, _ := strings.Cut(strings.TrimLeft(a, "./"), "/")
			ok = ok && first != "" && !wild(first)
		}
	})
	return ok
}

func (f *fuzzer) checkPlain(_ context.Context, c *Case, j *job, first outcome) (*finding, error) {
	if !f.plain {
		return nil, nil
	}
	return j.hand.against(c, first), nil
}

// withIgnoreFile has .dockerignore among the context's files.
func withIgnoreFile(c *Case) *Case {
	if len(c.Ignore) == 0 {
		return c
	}
	n := *c
	n.Context = append(c.Context[:len(c.Context):len(c.Context)],
		Entry{Path: ".dockerignore", Kind: File, Mode: 0o644, Data: strings.Join(c.Ignore, "\n") + "\n", Time: recent})
	return &n
}
