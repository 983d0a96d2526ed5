package executor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/pick"
	"github.com/861fb494/build/llb"
)

// file applies a File operation: the actions, in order, make one layer.
func (w *Worker) file(ctx context.Context, n *llb.Node, op llb.File, in []Result) (Result, error) {
	base, err := w.Fetch(ctx, in[0].Layers)
	if err != nil {
		return Result{}, err
	}
	in = slices.Clone(in)
	in[0].Layers = base
	d, err := w.Store.Prepare(ctx, in[0].Layers)
	if err != nil {
		return Result{}, err
	}
	defer d.Discard()
	e := &edit{w: w, n: n, to: d.Tree, in: in, base: len(in[0].Layers) > 0, read: map[int]*pick.Hasher{}, now: time.Now()}
	defer e.close()
	if slices.ContainsFunc(op.Actions, func(a llb.Action) bool { _, ok := a.(llb.Copy); return ok }) {
		e.previous = w.newPrevious(n, in[0].Layers)
	}
	for _, a := range op.Actions {
		if err = e.apply(ctx, a); err != nil {
			break
		}
	}
	if err := e.intact(); err != nil && ctx.Err() == nil {
		return Result{}, err
	}
	if err != nil {
		return Result{}, err
	}
	d.Unread = e.unread.Load()
	l, err := d.Commit(ctx, &e.known)
	if err != nil {
		return Result{}, err
	}
	r := in[0].with(l)
	r.Torn = e.torn()
	return r, nil
}

// edit is one File operation being applied.
type edit struct {
	w        *Worker
	n        *llb.Node
	to       *tree.Tree
	in       []Result
	base     bool                 // there is something below: names of users can be looked up
	views    map[int]*chainView   // of inputs that are chains
	watches  []func() error       // of their layers: see Worker.watch
	known    tree.Digests         // contents of the files written
	read     map[int]*pick.Hasher // of inputs that are contexts: what was read of them
	previous *previous            // may be nil
	noClones atomic.Bool          // the file system has no reflinks
	unread   atomic.Bool          // known has digests that layers have recorded
	now      time.Time            // of directories and files that have no time of their own
}

// intact waits until the files of all layers that are read have been looked at.
func (e *edit) intact() error {
	var err error
	for _, w := range e.watches {
		err = cmp.Or(err, w())
	}
	return err
}

func (e *edit) close() {
	for _, v := range e.views {
		v.Close()
	}
	e.previous.close()
}

// torn reports whether something else was read of a context than what it was
// pinned with: its files were changed meanwhile.
func (e *edit) torn() bool {
	for i, h := range e.read {
		if h.Sum() != e.in[i].Local.Digest {
			return true
		}
	}
	return false
}

func (e *edit) apply(ctx context.Context, a llb.Action) error {
	switch a := a.(type) {
	case llb.Copy:
		return e.copy(ctx, a)
	case llb.Mkdir:
		return e.mkdirAction(a)
	case llb.Mkfile:
		return e.mkfile(a)
	}
	return fmt.Errorf("action %T is not known", a)
}

// owner is a uid and gid; nil keeps what the source has.
type owner struct{ uid, gid int }

func (e *edit) mkdirAction(a llb.Mkdir) error {
	var who *owner
	if a.Owner != "" {
		var err error
		if who, err = e.owner(a.Owner); err != nil {
			return err
		}
	}
	at, err := e.to.Resolve(a.Path, true)
	if err != nil {
		return err
	}
	return e.mkdirAll(at, a.Mode, who)
}

func (e *edit) mkfile(a llb.Mkfile) error {
	who, err := e.owner(a.Owner)
	if err != nil {
		return err
	}
	at, err := e.to.Resolve(a.Path, true)
	if err != nil {
		return err
	}
	if err := e.mkdirAll(path.Dir(at), 0o755, who); err != nil {
		return err
	}
	e.known.Delete(at)
	f, err := e.to.Create(at)
	if err != nil {
		return err
	}
	_, err = f.Write(a.Data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	mode, err := parseMode(a.Mode)
	if err != nil {
		return err
	}
	return e.to.SetMeta(at, e.owned(tree.Entry{Mode: mode.of(unix.S_IFREG | 0o644), ModTime: e.now}, who))
}

func (e *edit) owned(t tree.Entry, who *owner) tree.Entry {
	if who != nil {
		t.UID, t.GID = who.uid, who.gid
	}
	return t
}

// mkdirAll makes the directory p, which is resolved, and those above it, with
// mode and owner; those that are there stay as they are. As with mkdir(2), what
// is made in a directory with the setgid bit has it too, and without a who the
// group as well.
func (e *edit) mkdirAll(p string, mode uint32, who *owner) error {
	var missing []string
	group := 0
	for {
		t, err := e.to.Quick(p)
		if err == nil {
			if !t.IsDir() {
				return &fs.PathError{Op: "mkdir", Path: p, Err: unix.ENOTDIR}
			}
			if t.Mode&unix.S_ISGID != 0 {
				mode |= unix.S_ISGID
				group = t.GID
			}
			break
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
		missing = append(missing, p)
		p = path.Dir(p)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := e.to.Mkdir(missing[i], mode); err != nil {
			return err
		}
		m := e.owned(tree.Entry{Mode: unix.S_IFDIR | mode&0o7777, GID: group, ModTime: e.now}, who)
		if err := e.to.SetMeta(missing[i], m); err != nil {
			return err
		}
	}
	return nil
}

// isDirPath reports a destination that is written as a directory.
func isDirPath(p string) bool {
	return strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.")
}
