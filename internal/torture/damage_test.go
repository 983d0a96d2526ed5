package torture

import (
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// damage is what may become of a file. It returns false where that changes
// nothing, as with an empty file.
type damage struct {
	name   string
	silent bool // neither size nor time tell
	do     func(path string, data []byte) (bool, error)
}

// write puts data into a file as a disk that errs does: at the same time, in
// the same inode.
func write(path string, data []byte, keepTime bool) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Truncate(int64(len(data))), f.Close()); err == nil && keepTime {
		err = os.Chtimes(path, time.Time{}, st.ModTime())
	}
	return err
}

func flip(at func(size int) int, keepTime bool) func(string, []byte) (bool, error) {
	return func(path string, data []byte) (bool, error) {
		if len(data) == 0 {
			return false, nil
		}
		data[at(len(data))] ^= 1 << 2
		return true, write(path, data, keepTime)
	}
}

func cut(to func(size int) int) func(string, []byte) (bool, error) {
	return func(path string, data []byte) (bool, error) {
		return len(data) > 0, write(path, data[:max(to(len(data)), 0)], true)
	}
}

var damages = []damage{
	{"first bits flipped", true, flip(func(int) int { return 0 }, true)},
	{"bits in the middle flipped", true, flip(func(size int) int { return size / 2 }, true)},
	{"last bits flipped", false, flip(func(size int) int { return size - 1 }, false)},
	{"cut to nothing", false, cut(func(int) int { return 0 })},
	{"cut to half", false, cut(func(size int) int { return size / 2 })},
	{"cut by a byte", false, cut(func(size int) int { return size - 1 })},
	{"replaced by zeros", true, func(path string, data []byte) (bool, error) {
		return len(data) > 0, write(path, make([]byte, len(data)), true)
	}},
	{"removed", false, func(path string, _ []byte) (bool, error) { return true, os.Remove(path) }},
}

// Whatever is damaged in a state directory, the next build is right, and fsck
// says what it dropped.
func TestDamage(t *testing.T) {
	l, rng := open(t), random(t)
	r := l.used(t)
	names, _ := r.classes(t)
	type trial struct {
		class string
		damage
	}
	var all []trial
	for _, c := range names {
		for _, d := range damages {
			all = append(all, trial{c, d})
		}
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if *damaged > 0 {
		all = all[:min(*damaged, len(all))]
	}
	done := 0
	for _, tr := range all {
		ok := t.Run(tr.class+" "+tr.name, func(t *testing.T) {
			if r.damage(t, rng, tr.class, tr.damage) {
				done++
			}
		})
		if !ok {
			r = l.used(t) // what one has not mended is not to fail the others
		}
	}
	t.Logf("%d files damaged, of %d classes", done, len(names))
}

// used is a state directory with files of all kinds.
func (l *lab) used(t *testing.T) *root {
	t.Helper()
	r := l.root(t)
	r.right(t, "nothing")
	r.must(t, r.building("-o", "type=oci,dest="+r.out+"/x.tar")...)
	r.must(t, r.building()...)
	r.must(t, "run", "x", "true") // a container that stays
	return r
}

func (r *root) damage(t *testing.T, rng *rand.Rand, class string, d damage) bool {
	_, files := r.classes(t)
	list := files[class]
	if len(list) == 0 {
		t.Skip("there is none at the moment")
	}
	path := list[rng.IntN(len(list))]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := d.do(path, data)
	if err != nil {
		t.Fatal(err)
	}
	if !changed {
		return false
	}
	after := path + " is " + d.name
	if rng.IntN(2) == 0 {
		out, err := r.run("fsck")
		if err != nil && !strings.Contains(out, "problem") {
			t.Fatalf("after %s, fsck: %v\n%s", after, err, out)
		}
		t.Logf("fsck: %s", out)
		r.sound(t, "fsck after "+after)
	}
	// What takes the place of a file in a layer, looking just the same, only
	// those notice who read it and know what it was: not a step that runs.
	ways := [][]string{nil, {"--no-cache"}, r.more(rng.Uint64())}
	if d.silent && strings.HasPrefix(class, "snapshots/layers/") {
		ways = ways[:1]
	}
	r.right(t, after, ways[rng.IntN(len(ways))]...)
	if out, err := r.run("fsck"); err != nil { // of what no build has asked for
		t.Logf("fsck after a build: %s", out)
	}
	r.sound(t, "a build and fsck after "+after)
	r.clean(t, after)
	return true
}
