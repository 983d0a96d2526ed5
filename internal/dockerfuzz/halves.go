package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// halves are two cases that come to the same as c: the last stage's first
// instructions as an image called name, and the rest upon it. False where there
// is nothing to part.
func (c *Case) halves(name string) (first, second *Case, ok bool) {
	first, second = c.copy(), c.copy()
	last := len(c.Stages) - 1
	instrs := c.Stages[last].Instrs
	if len(instrs) < 2 || slices.ContainsFunc(instrs, func(in Instr) bool { return in.Op == "ONBUILD" }) {
		return nil, nil, false
	}
	n := len(instrs) / 2
	first.Stages[last].Instrs = first.Stages[last].Instrs[:n]
	// Arguments end with the image.
	args := slices.DeleteFunc(slices.Clone(instrs[:n]), func(in Instr) bool { return in.Op != "ARG" })
	second.Stages[last] = Stage{From: name, Instrs: append(args, second.Stages[last].Instrs[n:]...)}
	return first, second, true
}

// checkHalves builds by way of an image of the store.
func (f *fuzzer) checkHalves(ctx context.Context, c *Case, j *job, whole outcome) (*finding, error) {
	name := "dockerfuzz-" + filepath.Base(j.dir)
	first, second, ok := c.halves(name)
	if !f.modes || whole.image == nil || !ok {
		return nil, nil
	}
	part := *j
	part.dockerfile = filepath.Join(filepath.Dir(j.dockerfile), "Dockerfile.first")
	if err := os.WriteFile(part.dockerfile, []byte(first.dockerfile(j.images)), 0o644); err != nil {
		return nil, err
	}
	f.builds.Add(2)
	o := f.mode("overlay", false)
	if done, err := o.tag(ctx, &part, part.dockerfile, name); err != nil || done.image == nil {
		return failed("halves", "the first half fails:\n"+done.log, err)
	}
	part.dockerfile = filepath.Join(filepath.Dir(j.dockerfile), "Dockerfile.second")
	if err := os.WriteFile(part.dockerfile, []byte(second.dockerfile(j.images)), 0o644); err != nil {
		return nil, err
	}
	done, err := o.build(ctx, &part)
	if err != nil || done.image == nil {
		return failed("halves", "the second half fails:\n"+done.log, err)
	}
	j.serial = part.serial
	d := differences(whole.image.Flat, done.image.Flat, c.among())
	if a, b := len(whole.image.Layers), len(done.image.Layers); a != b {
		d = append(d, fmt.Sprintf("%d layers against %d", a, b))
	}
	if len(d) > 0 {
		return &finding{"halves", "build against the same in two halves:\n" + clip(d)}, nil
	}
	return nil, nil
}

// failed is a finding, unless there was an error.
func failed(kind, text string, err error) (*finding, error) {
	if err != nil {
		return nil, err
	}
	return &finding{kind, text}, nil
}
