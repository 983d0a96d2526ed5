package chunked

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
)

// Size is how many bytes of content the files have, without holes: what they
// take on a disk. It is known once the list is encoded or decoded.
func (l *List) Size() int64 { return l.size }

// check holds a list to its form, see the package's documentation, and adds its
// size up.
func (l *List) check() error {
	if err := l.checkPacks(); err != nil {
		return err
	}
	if len(l.Entries) == 0 || len(l.Entries) > maxEntries || len(l.Content) != len(l.Entries) {
		return fmt.Errorf("%d files; want 1 to %d", len(l.Entries), maxEntries)
	}
	if e := &l.Entries[0]; e.Path != "/" || !e.IsDir() {
		return fmt.Errorf("it begins with %.80q and not with its root", e.Path)
	}
	w := walker{linked: map[string]uint32{}}
	for i := range l.Entries {
		if to := l.Entries[i].HardLink; to != "" {
			w.linked[to] = 0
		}
	}
	l.size = 0
	refs := 0
	starts := l.starts()
	for i := range l.Entries {
		e := &l.Entries[i]
		if err := w.entry(e); err != nil {
			return fmt.Errorf("%.80q: %w", e.Path, err)
		}
		if !hasContent(e) {
			continue
		}
		n, data, err := l.content(l.Content[i], starts, e.Size)
		if err != nil {
			return fmt.Errorf("%.80q: %w", e.Path, err)
		}
		l.size += data
		if refs += n; refs > maxRefs {
			return fmt.Errorf("more than %d chunks in files", maxRefs)
		}
	}
	return nil
}

func (l *List) checkPacks() error {
	if len(l.Packs) > MaxPacks {
		return fmt.Errorf("%d packs; at most %d are taken", len(l.Packs), MaxPacks)
	}
	chunks := 0
	for i, p := range l.Packs {
		var size int64
		for _, c := range p {
			if c.Size == 0 || c.Size > maxChunk {
				return fmt.Errorf("pack %d: a chunk of %d bytes; want 1 to %d", i, c.Size, maxChunk)
			}
			size += int64(c.Size)
		}
		if chunks += len(p); chunks > maxChunks || size > maxPack {
			return fmt.Errorf("pack %d: %d bytes, %d chunks up to it; at most %d and %d are taken", i, size, chunks, maxPack, maxChunks)
		}
	}
	return nil
}

// starts is the sum of the sizes before each chunk, and of all.
func (l *List) starts() []int64 {
	n := 0
	for _, p := range l.Packs {
		n += len(p)
	}
	out := make([]int64, 1, n+1)
	for _, p := range l.Packs {
		for _, c := range p {
			out = append(out, out[len(out)-1]+int64(c.Size))
		}
	}
	return out
}

// content checks that a file of size bytes has parts; chunks is how many they
// are, data their bytes.
func (l *List) content(parts []Part, starts []int64, size int64) (chunks int, data int64, err error) {
	total := int64(0)
	for _, p := range parts {
		switch {
		case p.Count == 0 && (p.Hole <= 0 || p.Hole > maxFile):
			return 0, 0, fmt.Errorf("a hole of %d bytes", p.Hole)
		case p.Count == 0:
			total += p.Hole
		case p.First < 0 || p.Count < 0 || p.First > len(starts)-1 || p.Count > len(starts)-1-p.First:
			return 0, 0, fmt.Errorf("chunks %d to %d of %d", p.First, p.First+p.Count, len(starts)-1)
		default:
			n := starts[p.First+p.Count] - starts[p.First]
			chunks += p.Count
			data += n
			total += n
		}
		if total > maxFile {
			return 0, 0, fmt.Errorf("more than %d bytes", int64(maxFile))
		}
	}
	if total != size {
		return 0, 0, fmt.Errorf("%d bytes of content; it says %d", total, size)
	}
	return chunks, data, nil
}

// walker checks that entries come as a walk of a directory has them.
type walker struct {
	last   string            // path of the entry before
	dirs   []string          // that lead to it, itself if it is one; the root is not among them
	linked map[string]uint32 // what hard links name: its type, once it was there
}

func (w *walker) entry(e *tree.Change) error {
	if e.Path == "/" && w.last == "" {
		w.last = "/"
		return checkMeta(e)
	}
	if err := checkPath(e.Path); err != nil {
		return err
	}
	if !after(w.last, e.Path) {
		return fmt.Errorf("it comes after %.80q", w.last)
	}
	parent := path.Dir(e.Path)
	for len(w.dirs) > 0 && w.dirs[len(w.dirs)-1] != parent {
		w.dirs = w.dirs[:len(w.dirs)-1]
	}
	if parent != "/" && len(w.dirs) == 0 {
		return fmt.Errorf("%.80q is no directory of the list", parent)
	}
	w.last = e.Path
	if err := checkMeta(e); err != nil {
		return err
	}
	switch {
	case e.IsDir():
		w.dirs = append(w.dirs, e.Path)
	case e.HardLink != "":
		if w.linked[e.HardLink] != e.Type() {
			return fmt.Errorf("it is a hard link to %.80q, which is not one before it", e.HardLink)
		}
	default:
		if _, ok := w.linked[e.Path]; ok {
			w.linked[e.Path] = e.Type()
		}
	}
	return nil
}

// checkPath takes absolute, clean paths, whose names can be those of files.
func checkPath(p string) error {
	if len(p) > maxPath || len(p) < 2 || p[0] != '/' || strings.ContainsRune(p, 0) {
		return fmt.Errorf("a path of %d bytes that is not absolute, or cannot be one", len(p))
	}
	for name := range strings.SplitSeq(p[1:], "/") {
		if name == "" || name == "." || name == ".." || len(name) > maxName {
			return fmt.Errorf("the name %.80q in it cannot be", name)
		}
	}
	return nil
}

// after reports whether b comes after a where paths are sorted by components.
func after(a, b string) bool {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	switch {
	case n == len(b):
		return false
	case n == len(a):
		return true
	case a[n] == '/': // a's name ends here and b's does not
		return true
	case b[n] == '/':
		return false
	}
	return a[n] < b[n]
}

// checkMeta holds what an entry says beside its path to what can be.
func checkMeta(e *tree.Change) error {
	switch e.Type() {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
	default:
		return fmt.Errorf("files of mode %o are not taken", e.Mode)
	}
	link := e.Type() == unix.S_IFLNK
	switch {
	case e.Removed || e.Opaque || e.Major|e.Minor != 0 || e.Digest != "" || e.Ino != 0 || e.Nlink != 0:
		return fmt.Errorf("it says what is not said of files here")
	case e.HardLink != "" && e.IsDir():
		return fmt.Errorf("a directory cannot be a hard link")
	case link != (e.Link != "") || len(e.Link) >= 4096 || strings.ContainsRune(e.Link, 0):
		return fmt.Errorf("a link's target of %d bytes", len(e.Link))
	case e.Size < 0 || e.Size > maxFile || e.Size != 0 && e.Type() != unix.S_IFREG:
		return fmt.Errorf("%d bytes", e.Size)
	case e.UID < 0 || e.GID < 0 || e.UID >= 1<<32-1 || e.GID >= 1<<32-1: // -1 would leave them alone
		return fmt.Errorf("the owner %d:%d", e.UID, e.GID)
	case e.ModTime.Unix() < -maxSeconds || e.ModTime.Unix() > maxSeconds:
		return fmt.Errorf("the time %d", e.ModTime.Unix())
	case e.Mode&^(unix.S_IFMT|0o7777) != 0:
		return fmt.Errorf("the mode %o", e.Mode)
	}
	n := 0
	for k, v := range e.Xattrs {
		if n += len(k) + len(v); k == "" || len(k) > maxName || strings.ContainsRune(k, 0) || !layer.Portable(k) {
			return fmt.Errorf("the extended attribute %.80q is not taken", k)
		}
	}
	if n > maxXattrs {
		return fmt.Errorf("%d bytes of extended attributes", n)
	}
	return nil
}
