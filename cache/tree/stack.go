package tree

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// layerDir is a layer's directory and, open, the directory in it used last.
type layerDir struct {
	Lower
	root    int // -1: not opened yet
	sub     int // -1: none
	subPath string
}

// Lower is a layer that is read.
type Lower struct {
	Dir string
	// Names are the names in Dir, sorted, those of whiteouts too, of a layer that
	// nothing changes any more; nil if they are not known. Dir is only opened
	// for what it has.
	Names []string
}

// lacks reports whether the layer is known not to have the name in its root.
func (l *layerDir) lacks(name string) bool {
	if l.Names == nil || name == "" {
		return false
	}
	_, found := slices.BinarySearch(l.Names, name)
	return !found
}

// New opens the tree of lowers, topmost first, under upper. upper is "" for a
// tree that is only read. Close releases its file descriptors.
func New(upper string, lowers []string) (*Tree, error) {
	known := make([]Lower, len(lowers))
	for i, dir := range lowers {
		known[i].Dir = dir
	}
	t, err := Stack(upper, known)
	if err != nil {
		return nil, err
	}
	// A layer whose root is opaque ("rm -rf /*", and a pulled layer may say
	// so) hides all below it.
	root := t.dirs["/"]
	for i := range root {
		if len(root) > 1 && t.opaque(i, "/") {
			t.dirs["/"] = root[:i+1]
			break
		}
	}
	return t, nil
}

// Stack is New for lowers whose roots do not hide each other.
func Stack(upper string, lowers []Lower) (*Tree, error) {
	t := &Tree{dirs: map[string][]int{}, times: map[string]time.Time{}}
	if upper != "" {
		t.upper = true
		lowers = append([]Lower{{Dir: upper}}, lowers...)
	}
	var root []int
	for i, l := range lowers {
		d := &layerDir{Lower: l, root: -1, sub: -1}
		t.layers = append(t.layers, d)
		root = append(root, i)
		if l.Names != nil {
			continue
		}
		if _, err := d.open(); err != nil {
			t.Close()
			return nil, fmt.Errorf("open layer directory %s: %w", l.Dir, err)
		}
	}
	t.dirs["/"] = root
	return t, nil
}

// open is the layer's directory, open.
func (l *layerDir) open() (int, error) {
	if l.root >= 0 {
		return l.root, nil
	}
	fd, err := unix.Open(l.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		l.root = fd
	}
	return l.root, err
}

func (l *layerDir) forget() {
	if l.sub >= 0 {
		unix.Close(l.sub)
		l.sub = -1
	}
}
