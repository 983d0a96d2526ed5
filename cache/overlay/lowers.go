package overlay

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// maxLayers is how many lower directories overlayfs stacks: OVL_MAX_STACK of
// fs/overlayfs/params.h.
const maxLayers = 500

// maxNames is how many names of a layer's root are remembered.
const maxNames = 256

// seen is what is known of a committed layer, which nothing changes any more.
type seen struct {
	names  []string // sorted names in its root; nil: more than maxNames
	opaque bool     // hides what is below
}

// empty reports whether a layer neither has nor hides anything.
func (s seen) empty() bool { return s.names != nil && len(s.names) == 0 && !s.opaque }

// lowers is the layers of chain to be stacked, topmost first: without those that
// an opaque root hides, and without those that have nothing, but for the
// topmost, whose root has the metadata of the whole. Overlayfs refuses a
// directory that is there twice; the lower of the two adds nothing.
func (d *Driver) lowers(chain []string) ([]tree.Lower, error) {
	var ls []tree.Lower
	there := make(map[string]bool, len(chain))
	for i := len(chain) - 1; i >= 0; i-- {
		if there[chain[i]] {
			continue
		}
		there[chain[i]] = true
		s, err := d.look(chain[i])
		if err != nil {
			return nil, err
		}
		if s.empty() && len(ls) > 0 {
			continue
		}
		ls = append(ls, tree.Lower{Dir: d.Dir(chain[i]), Names: s.names})
		// Overlayfs itself takes no notice of an opaque root.
		if s.opaque {
			break
		}
	}
	if len(ls) > maxLayers {
		return nil, fmt.Errorf("%d layers: overlayfs stacks at most %d", len(ls), maxLayers)
	}
	return ls, nil
}

// look looks at committed layer id, once.
func (d *Driver) look(id string) (seen, error) {
	d.mu.Lock()
	s, ok := d.seen[id]
	d.mu.Unlock()
	if ok {
		return s, nil
	}
	s, err := lookAt(d.Dir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return seen{}, fmt.Errorf("layer %s: %w", id, fs.ErrNotExist)
	}
	if err != nil {
		return seen{}, fmt.Errorf("layer %s: %w", id, err)
	}
	d.mu.Lock()
	d.seen[id] = s
	d.mu.Unlock()
	return s, nil
}

func lookAt(dir string) (seen, error) {
	f, err := os.Open(dir)
	if err != nil {
		return seen{}, err
	}
	defer f.Close()
	var s seen
	var b [1]byte
	n, err := unix.Fgetxattr(int(f.Fd()), tree.OpaqueXattr, b[:])
	s.opaque = err == nil && n == 1 && b[0] == 'y'
	names, err := f.Readdirnames(maxNames + 1)
	if err != nil && err != io.EOF {
		return seen{}, err
	}
	if len(names) <= maxNames {
		slices.Sort(names)
		s.names = append([]string{}, names...) // not nil
	}
	return s, nil
}
