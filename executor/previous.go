package executor

import (
	"iter"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// previous is the layer that the step which is done now made when it was last
// done. A file that is as it was becomes a hard link to it: nothing writes to
// the files of committed layers.
type previous struct {
	store *cache.Store
	id    string
	root  int             // the layer's directory, open
	links map[string]bool // files that others in the layer are links to

	next   func() (tree.Change, error, bool)
	stop   func()
	starts int
	now    tree.Change // what next gave last
	asked  string
}

// maxStarts is how often the list of a layer's changes is read: it is read on as
// long as files are asked for in its order.
const maxStarts = 16

// newPrevious is the layer made last at n's place; nil if there is none, if its
// files cannot be shared, if it is one of base, or if nothing made before is to
// be used.
func (w *Worker) newPrevious(n *llb.Node, base []oci.Layer) *previous {
	place := w.place(n)
	if place == "" || w.Meta[n.Digest].NoCache {
		return nil
	}
	last, err := w.Store.Last(place)
	if err != nil {
		return nil
	}
	r, err := w.Store.Step(last.Key)
	if err != nil || len(r.Layers) == 0 {
		return nil
	}
	l := r.Layers[len(r.Layers)-1]
	dir, ok := w.Store.Shareable(l.ID)
	if !ok || slices.ContainsFunc(base, func(b oci.Layer) bool { return b.ID == l.ID }) {
		return nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	p := &previous{store: w.Store, id: l.ID, root: fd}
	for c, err := range w.Store.Entries(l.ID) {
		if err != nil {
			p.close()
			return nil
		}
		if c.HardLink != "" {
			if p.links == nil {
				p.links = map[string]bool{}
			}
			p.links[c.HardLink] = true
		}
	}
	return p
}

func (p *previous) close() {
	if p == nil {
		return
	}
	if p.stop != nil {
		p.stop()
	}
	unix.Close(p.root)
}

// at is the regular file that the layer has at that path, if it has one, and that
// under no other name. It is valid until the next call.
func (p *previous) at(file string) *tree.Change {
	if p == nil {
		return nil
	}
	if p.next == nil || comparePaths(file, p.asked) < 0 {
		if p.starts++; p.starts > maxStarts {
			return nil
		}
		if p.stop != nil {
			p.stop()
		}
		p.next, p.stop = iter.Pull2(p.store.Entries(p.id))
		p.now = tree.Change{}
	}
	p.asked = file
	for p.now.Path == "" || comparePaths(p.now.Path, file) < 0 {
		c, err, ok := p.next()
		if !ok || err != nil {
			p.starts = maxStarts // there is nothing more of use
			return nil
		}
		p.now = c
	}
	c := &p.now
	if c.Path != file || c.Removed || c.Type() != unix.S_IFREG || c.HardLink != "" || p.links[file] || len(c.Xattrs) > 0 {
		return nil
	}
	return c
}

// comparePaths compares as lists of changes are sorted: by components.
func comparePaths[T string | []byte](a, b T) int {
	for i := range min(len(a), len(b)) {
		switch x, y := a[i], b[i]; {
		case x == y:
		case x == '/':
			return -1
		case y == '/':
			return 1
		default:
			return int(x) - int(y)
		}
	}
	return len(a) - len(b)
}

// reuse makes the file of a, which is to have the metadata of e, a link to what
// the step made of it last time, if that is the same.
func (c *copier) reuse(a *act, e *tree.Entry) bool {
	was := &a.before
	if was.Path == "" || was.Digest == "" || len(e.Xattrs) > 0 ||
		was.Mode != e.Mode || was.UID != e.UID || was.GID != e.GID || was.Size != e.Size || !was.ModTime.Equal(e.ModTime) {
		return false
	}
	d, ok := c.knownDigest(a.item.Entry.Path)
	if !ok || d != was.Digest {
		return false
	}
	// What lies there is what was recorded, as far as can be told without reading
	// it.
	var st unix.Stat_t
	err := unix.Fstatat(c.previous.root, a.path[1:], &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || st.Mode != was.Mode || st.Size != was.Size || st.Uid != uint32(was.UID) || st.Gid != uint32(was.GID) ||
		st.Ino != was.Ino || st.Mtim.Sec != was.ModTime.Unix() || st.Mtim.Nsec != int64(was.ModTime.Nanosecond()) {
		return false
	}
	if err := a.dir.Link(c.previous.root, a.path[1:], path.Base(a.path)); err != nil {
		return false // too many links, or the layer was just collected
	}
	a.digest = d
	c.unread.Store(true)
	return true
}

// knownDigest is the digest of the source file p, as far as it is known without
// opening it.
func (c *copier) knownDigest(p string) (oci.Digest, bool) {
	switch from := c.from.(type) {
	case *source.Context:
		return from.Known(p)
	case *chainView:
		d, err := from.recorded(p)
		return d, err == nil && d != ""
	}
	return "", false
}
