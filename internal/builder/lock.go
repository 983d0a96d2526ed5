package builder

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/platforms"

	"github.com/861fb494/build/internal/lockfile"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// LockOptions say what of a lock file is renewed. The zero value keeps what it
// has.
type LockOptions struct {
	Update bool // ask anew what is in it already
	// Names are what Update is for, as lockfile.Key.Is has them; empty: all.
	Names  []string
	DryRun bool // leave the file as it is
}

// LockChange is an entry that is not as it was.
type LockChange struct {
	Key      lockfile.Key
	Was, Is  string // "" where it was not there, or is no longer
	Position string // of what is new: "Dockerfile:7"; may be empty
}

// LockResult is what Lock did.
type LockResult struct {
	Name    string // of the file
	Entries int
	Changes []LockChange // in the file's order
	Made    bool         // there was no such file
	Written bool         // it is another than before, or would be
}

// Lock writes down, in a file beside the Dockerfile, what the tags, URLs and
// branches are that any stage of it needs, for builds with Request.Locked. What
// is in the file already stays, unless nothing needs it any more. New entries,
// and those to be updated, are what registries and servers say, whatever is here;
// with Request.Offline they are what is here.
func (b *Builder) Lock(ctx context.Context, r Request, o LockOptions) (LockResult, error) {
	if r.Sink == nil {
		r.Sink = progress.Discard
	}
	r.Call, r.Pull, r.Locked = "", true, false
	// All stages are looked at, also those whose mistakes fail no build.
	r.Frontend.BuildArgs = maps.Clone(r.Frontend.BuildArgs)
	if r.Frontend.BuildArgs == nil {
		r.Frontend.BuildArgs = map[string]string{}
	}
	r.Frontend.BuildArgs["BUILDKIT_DOCKERFILE_CHECK"] = "skip=all"
	j := newJob(b, r)
	defer j.close()
	res, err := j.writeLock(ctx, o)
	if err != nil {
		err = j.locate(err)
	}
	return res, err
}

func (j *job) writeLock(ctx context.Context, o LockOptions) (res LockResult, err error) {
	if err := j.open(ctx); err != nil {
		return res, err
	}
	c := j.contexts
	path, name := c.lockPath()
	res.Name = name
	if path == "" {
		return res, errors.New("lock: the lock file is written beside the Dockerfile, which has to be a file then")
	}
	if rel, err := filepath.Rel(c.temp, path); c.temp != "" && err == nil && filepath.IsLocal(rel) {
		return res, errors.New("lock: the Dockerfile is not on this machine, where the lock file could be written beside it")
	}
	old, err := c.readLock()
	var bad *lockfile.Error
	switch {
	case err == nil:
	case errors.Is(err, os.ErrNotExist):
		res.Made = true
	case !errors.As(err, &bad) || errors.Is(err, lockfile.ErrVersion):
		return res, err
	case !o.Update || len(o.Names) > 0: // something of it would stay
		return res, fmt.Errorf("%w ('build lock --update' writes the file anew)", err)
	}
	l := &locker{name: name, old: old, o: o, found: map[lockfile.Key]*locking{}}
	j.lock = l
	if err := j.lower(ctx); err != nil {
		return res, err
	}
	j.graph.Targets = nil
	for _, low := range j.lowered {
		j.graph.Targets = append(j.graph.Targets, low.Stages...)
	}
	at := j.positions()
	j.from = j.sources()
	if err := j.pinSchemes(ctx, llb.HTTP, llb.Git); err != nil {
		return res, err
	}
	file, err := j.locked(ctx, l)
	if err != nil {
		return res, err
	}
	res.Entries = len(file)
	res.Changes = changes(old, file, at)
	data := file.Format()
	was, rerr := os.ReadFile(path)
	if res.Written = rerr != nil || !bytes.Equal(was, data); res.Written && !o.DryRun {
		err = replaceFile(path, c.dockerfilePath, data)
	}
	return res, err
}

// positions are where the sources of the graph stand first in the Dockerfile.
func (j *job) positions() map[lockfile.Key]llb.Position {
	at := map[lockfile.Key]llb.Position{}
	j.graph.Walk(func(n *llb.Node) {
		s, ok := n.Op.(llb.Source)
		if !ok {
			return
		}
		key := keyOf(s)
		for _, p := range j.graph.Meta[n.Digest].Positions {
			if first, ok := at[key]; !ok || first.File == p.File && first.Line > p.Line {
				at[key] = p
			}
		}
	})
	return at
}

// locker is the pinning of a lock file that is being made.
type locker struct {
	name string
	old  lockfile.File
	o    LockOptions

	mu    sync.Mutex
	found map[lockfile.Key]*locking
}

// locking is one entry being made; its mutex is held while somebody is asked.
type locking struct {
	mu    sync.Mutex
	entry lockfile.Entry
	kept  bool // it is the old file's
}

func (l *locker) String() string { return l.name }

func (l *locker) entry(key lockfile.Key, ask func() (lockfile.Entry, error)) (lockfile.Entry, error) {
	l.mu.Lock()
	k := l.found[key]
	if k == nil {
		k = &locking{}
		l.found[key] = k
	}
	l.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.entry.Name != "" {
		return k.entry, nil
	}
	e, kept := l.old[key]
	if kept = kept && !l.updates(key); !kept {
		var err error
		if e, err = ask(); err != nil {
			return e, err
		}
	}
	e.Key, e.Platforms = key, maps.Clone(e.Platforms)
	if e.Platforms == nil {
		e.Platforms = map[string]oci.Digest{}
	}
	k.entry, k.kept = e, kept
	return e, nil
}

// updates reports whether an entry that is there is to be renewed.
func (l *locker) updates(key lockfile.Key) bool {
	return l.o.Update && (len(l.o.Names) == 0 || slices.ContainsFunc(l.o.Names, key.Is))
}

func (l *locker) chosen(e lockfile.Entry, platform string, manifest oci.Digest) error {
	l.mu.Lock()
	k := l.found[e.Key]
	l.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if manifest != e.Digest { // which is an index's
		k.entry.Platforms[platform] = manifest
	}
	return nil
}

// locked is the file that l has come to.
func (j *job) locked(ctx context.Context, l *locker) (lockfile.File, error) {
	for _, name := range l.o.Names {
		known := false
		for key := range l.found {
			known = known || key.Is(name)
		}
		if !known {
			return nil, fmt.Errorf("--update=%s: the Dockerfile needs no such image, URL or repository; it needs %s", name, l.names())
		}
	}
	file := lockfile.File{}
	for key, k := range l.found {
		file[key] = k.entry
		if key.Kind != lockfile.Image || k.kept {
			continue
		}
		// What the file told of other platforms, maybe by others, it still tells.
		for name := range l.old[key].Platforms {
			p, err := platforms.Parse(name)
			if err != nil || k.entry.Platforms[name] != "" {
				continue
			}
			s := llb.Source{Scheme: llb.Registry, Ref: key.Name, Digest: k.entry.Digest, Platform: p}
			if img, err := j.remote.Image(ctx, s); err == nil && img.Desc.Digest != k.entry.Digest {
				k.entry.Platforms[name] = img.Desc.Digest
			} else if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
		}
	}
	return file, nil
}

func (l *locker) names() string {
	var all []string
	for key := range l.found {
		all = append(all, key.String())
	}
	slices.Sort(all)
	return cmp.Or(strings.Join(all, ", "), "none")
}

// changes are what makes the one file the other.
func changes(old, file lockfile.File, at map[lockfile.Key]llb.Position) []LockChange {
	all := maps.Clone(file)
	maps.Copy(all, old)
	var out []LockChange
	for _, e := range all.Sorted() {
		if was, is := old[e.Key].Value(), file[e.Key].Value(); was != is {
			c := LockChange{Key: e.Key, Was: was, Is: is}
			if p, ok := at[e.Key]; ok {
				c.Position = p.String()
			}
			out = append(out, c)
		}
	}
	return out
}

// replaceFile writes path, by a file of another name in its directory, and gives
// it the owner of the file beside: programs that build as root lock for others.
// A symbolic link stays, and what it leads to is replaced.
func replaceFile(path, beside string, data []byte) (err error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	mode := os.FileMode(0o644)
	st, err := os.Stat(path)
	if err == nil {
		mode = st.Mode().Perm()
	} else if st, err = os.Stat(beside); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	if owner, ok := st.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(owner.Uid), int(owner.Gid)) // some file systems have no owners
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
