package main

import (
	"context"
	"io/fs"
	"path/filepath"
	"syscall"
)

// disk builds what other workloads build, once each with contents that nobody
// has seen, and measures what that leaves on disk.
func (b *bench) disk(ctx context.Context, w workload, dir string, those []builder, result *Result) error {
	var parts []workload
	var contexts [][]string
	for _, other := range b.workloads() {
		for _, name := range w.after {
			if other.name != name {
				continue
			}
			at, err := b.writeContexts(ctx, other, filepath.Join(dir, name))
			if err != nil {
				return err
			}
			if err := stamp(at[0], serial()); err != nil {
				return err
			}
			result.Layers += tarSize(at[0])
			other.noCache = false
			parts, contexts = append(parts, other), append(contexts, at)
		}
	}
	for _, is := range those {
		b.tell("%s: %s", w.name, is.name)
		e := Entry{Builder: is.name}
		err := b.prime(ctx, w, is, nil)
		before := diskUse(is.state)
		var sum Sample
		for i, part := range parts {
			if err != nil {
				break
			}
			if err = b.dockerfiles(ctx, part, contexts[i], b.id); err != nil {
				break
			}
			var s Sample
			if s, err = b.timed(ctx, part, is, contexts[i]); err == nil {
				sum = Sample{Wall: sum.Wall + s.Wall, CPU: sum.CPU + s.CPU, Client: max(sum.Client, s.Client), Daemon: max(sum.Daemon, s.Daemon), Foreign: max(sum.Foreign, s.Foreign)}
			}
		}
		if err != nil {
			e.Failure = err.Error()
		} else if e.Samples = []Sample{sum}; is.state != "" {
			e.State = diskUse(is.state) - before
		}
		result.Entries = append(result.Entries, e)
	}
	return nil
}

// tarSize is what the files below dir take in a tar: a block of 512 bytes and
// their contents in whole blocks.
func tarSize(dir string) int64 {
	var sum int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		sum += 512
		if fi, err := d.Info(); err == nil && fi.Mode().IsRegular() {
			sum += (fi.Size() + 511) &^ 511
		}
		return nil
	})
	return sum
}

// diskUse is what the files below dir take on disk, in bytes; a file with
// several names counts once.
func diskUse(dir string) int64 {
	if dir == "" {
		return 0
	}
	var sum int64
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	// Files come and go in a daemon's directory: what is gone counts nothing.
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if id := (inode{st.Dev, st.Ino}); st.Nlink == 1 || d.IsDir() || !seen[id] {
			seen[id] = true
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}
