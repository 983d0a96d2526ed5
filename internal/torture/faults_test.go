package torture

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/interpose"
)

// kind is calls that the same code makes: of one name, on files of one class.
type kind struct{ name, class string }

func kindOf(c interpose.Call) kind { return kind{c.Name, class(c.Path)} }

func (k kind) String() string { return k.name + " of " + k.class }

// reads reports calls that change nothing.
func (k kind) reads() bool { return slices.Contains([]string{"look", "read", "list", "stat"}, k.name) }

// fault is a call that does not do what it is asked for.
type fault struct {
	kind
	n     int // which call of the kind: the first is 1
	errno unix.Errno
	short bool // half of a write is done
	full  bool // from then on the disk takes nothing more
	fresh bool // in a directory that is new, not in one that builds have used
}

func (f fault) String() string {
	how := fmt.Sprintf("fails (%s)", unix.ErrnoName(f.errno))
	if f.short {
		how = "writes half"
	}
	if f.full {
		how = "finds the disk full, as do all later ones"
	}
	where := "a used directory"
	if f.fresh {
		where = "a new directory"
	}
	return fmt.Sprintf("%s, the %dth in %s, %s", f.kind, f.n, where, how)
}

// decider is what has f happen; it tells whether it has.
func (f fault) decider() (decide func(interpose.Call) interpose.Action, happened func() bool) {
	n := 0
	decide = func(c interpose.Call) interpose.Action {
		k := kindOf(c)
		if k == f.kind {
			n++
		}
		switch {
		case f.full && n >= f.n && grows(k.name):
			return interpose.Action{Errno: unix.ENOSPC}
		case f.full || k != f.kind || n != f.n:
			return interpose.Action{}
		case f.short:
			return interpose.Action{Short: true}
		}
		return interpose.Action{Errno: f.errno}
	}
	return decide, func() bool { return n >= f.n }
}

// grows reports calls that need room on a disk.
func grows(name string) bool {
	return slices.Contains([]string{"open", "mkdir", "mknod", "symlink", "link", "rename", "write", "copy", "allocate", "setxattr"}, name)
}

// record counts the calls that a build makes.
func (r *root) record(t *testing.T, more ...string) map[kind]int {
	t.Helper()
	counts := map[kind]int{}
	sum, out, err := r.contentBy(func(cmd *exec.Cmd) error {
		return interpose.Run(cmd, r.dir, interpose.Options{Reads: true}, func(c interpose.Call) interpose.Action {
			counts[kindOf(c)]++
			return interpose.Action{}
		})
	}, more...)
	if err != nil || sum != r.want {
		t.Fatalf("build: %v, %s, want %s\n%s", err, sum, r.want, out)
	}
	return counts
}

// maxOfKind is about how many calls of one kind fail: the links of the base image
// alone are hundreds.
const maxOfKind = 60

// list is what may go wrong in a build that makes these calls: each call that
// changes something, and of those that read the first and the last of a kind.
func list(counts map[kind]int, fresh bool) []fault {
	var all []fault
	for _, k := range slices.SortedFunc(maps.Keys(counts), func(a, b kind) int { return strings.Compare(a.String(), b.String()) }) {
		errno := unix.EIO
		if grows(k.name) {
			errno = unix.ENOSPC
		}
		last := counts[k]
		for n := 1; n <= last; n += 1 + last/maxOfKind {
			if !k.reads() || n == 1 {
				all = append(all, fault{kind: k, n: n, errno: errno, fresh: fresh})
			}
		}
		if last > 1 {
			all = append(all, fault{kind: k, n: last, errno: errno, fresh: fresh})
		}
		if k.name == "write" {
			all = append(all, fault{kind: k, n: 1, short: true, fresh: fresh}, fault{kind: k, n: last, short: true, fresh: fresh})
		}
		if grows(k.name) {
			all = append(all, fault{kind: k, n: 1, full: true, fresh: fresh})
		}
	}
	return all
}

// noCache has all steps of the lab's Dockerfile run again.
var noCache = []string{"--no-cache"}

// Whichever call fails, a build comes to one clear error or to the right image,
// and the next one is right.
func TestFaults(t *testing.T) {
	l, rng := open(t), random(t)
	used := l.root(t)
	used.right(t, "nothing")
	fresh := list(l.root(t).record(t), true)
	known := used.record(t, noCache...)
	all := list(known, false)
	// A new directory takes longer: only for what nothing else does.
	fresh = slices.DeleteFunc(fresh, func(f fault) bool { return known[f.kind] > 0 })
	total := len(all) + len(fresh)
	all = append(all, fresh...)
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if *faults > 0 {
		all = all[:min(*faults, len(all))]
	}
	begun, kinds, failed := time.Now(), map[kind]bool{}, 0
	for _, f := range all {
		ok := t.Run(f.String(), func(t *testing.T) {
			r := used
			if f.fresh {
				r = l.root(t)
			}
			if r.suffer(t, f, rng) {
				failed++
			}
		})
		if !ok && !f.fresh {
			used = l.root(t) // what one has not mended is not to fail the others
			used.right(t, "nothing")
		}
		kinds[f.kind] = true
	}
	t.Logf("%d of %d faults in %d kinds of calls, %d of which failed the build, in %v", len(all), total, len(kinds), failed, time.Since(begun).Round(time.Second))
}

// suffer has f happen in a build, and looks at what that and the next come to. It
// reports whether the build failed.
func (r *root) suffer(t *testing.T, f fault, rng *rand.Rand) (failed bool) {
	flags := noCache
	if f.fresh {
		flags = nil
	}
	decide, happened := f.decider()
	sum, out, err := r.contentBy(func(cmd *exec.Cmd) error {
		return interpose.Run(cmd, r.dir, interpose.Options{Reads: f.reads()}, decide)
	}, flags...)
	if !happened() {
		t.Logf("the call was not made this time") // steps run side by side: not always the same is found done
	}
	switch {
	case err == nil && sum != r.want:
		t.Errorf("the image is %s, want %s\n%s", sum, r.want, out)
	case err != nil && !clear(out, f):
		t.Errorf("want one clear error:\n%s", out)
	}
	after := f.String()
	if rng.IntN(2) == 0 {
		r.right(t, after, noCache...)
	}
	r.right(t, after)
	r.sound(t, after)
	if f.name != "unlink" || f.class != "locks/step-H" && !strings.HasPrefix(f.class, ".overlay-probe-") {
		r.clean(t, after) // those are removed by none but the next who does the same
	}
	return err != nil
}

// clear reports whether what a failed build printed says what failed, once.
func clear(out string, f fault) bool {
	n := 0
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "ERROR: ") || strings.HasPrefix(line, "build: ") {
			n++
		}
	}
	why := f.errno
	if f.full {
		why = unix.ENOSPC
	}
	return n == 1 && strings.Contains(out, why.Error()) && !strings.Contains(out, "goroutine ")
}
