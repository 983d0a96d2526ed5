package drivertest

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/overlay"
	"github.com/861fb494/build/cache/plain"
	"github.com/861fb494/build/cache/tree"
)

// driver is cache.Driver, which this package must not import.
type driver interface {
	Prepare(ctx context.Context, id string, chain []string) (tree.Snapshot, error)
	View(ctx context.Context, chain []string) (tree.Snapshot, error)
	Changes(ctx context.Context, id string) iter.Seq2[tree.Change, error]
	Commit(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	Dir(id string) string
}

// drivers opens each driver's store in a directory.
var drivers = []struct {
	name string
	open func(dir string) (driver, error)
}{
	{"overlay", func(dir string) (driver, error) { return overlay.New(dir, overlay.Options{}) }},
	{"plain", func(dir string) (driver, error) { return plain.New(dir, plain.Options{}) }},
}

func open(t testing.TB, name string) driver {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts, owners and devices need root")
	}
	for _, d := range drivers {
		if d.name == name {
			dir := t.TempDir()
			able(t, name, dir)
			out, err := d.open(dir)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
	}
	t.Fatalf("no driver %q", name)
	return nil
}

// able skips a test of overlay where it cannot be mounted; CI is no such place.
func able(t testing.TB, name, dir string) {
	t.Helper()
	if name != "overlay" {
		return
	}
	if err := overlay.Supported(dir); err != nil && os.Getenv("CI") == "" {
		t.Skip("the temporary directory must be where overlayfs can be mounted: ", err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// brief is a change in short.
func brief(c tree.Change) string {
	if c.Removed {
		return "-" + c.Path
	}
	s := fmt.Sprintf("%s %o", c.Path, c.Mode)
	if c.HardLink != "" {
		s += " = " + c.HardLink
	}
	if c.Link != "" {
		s += " -> " + c.Link
	}
	if c.Opaque {
		s += " opaque"
	}
	return s
}

func briefs(cs []tree.Change) (out []string) {
	for _, c := range cs {
		out = append(out, brief(c))
	}
	return out
}

// comparable leaves out what may differ between drivers and runs: times (but
// for those that a test has set, which lie before it), inodes, link counts.
func comparable(cs []tree.Change, fine bool) []tree.Change {
	out := make([]tree.Change, len(cs))
	for i, c := range cs {
		if c.IsDir() || c.ModTime.After(began) && fine {
			c.ModTime = time.Time{}
		}
		c.ModTime = c.ModTime.Truncate(time.Second)
		c.Ino, c.Nlink = 0, 0
		out[i] = c
	}
	return out
}

var began = time.Now().Add(-time.Hour)

// commit makes layer id upon chain of ops done in a mount, and returns its
// changes, with digests.
func commit(t testing.TB, d driver, id string, chain []string, ops []op) []tree.Change {
	t.Helper()
	s, err := d.Prepare(t.Context(), id, chain)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tree.Close(); err != nil {
		t.Fatal(err)
	}
	inMount(t, task{Root: s.Root, Ops: ops})
	return seal(t, d, id)
}

// seal commits prepared layer id and returns its changes, with digests.
func seal(t testing.TB, d driver, id string) []tree.Change {
	t.Helper()
	changes, err := layer.Collect(d.Changes(t.Context(), id))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := layer.Hash(t.Context(), changes, d.Dir(id), 2); err != nil {
		t.Fatal(err)
	}
	return changes
}

// list is all of chain: by its tree, which must be what its mount shows.
func list(t testing.TB, d driver, chain []string) []tree.Change {
	t.Helper()
	s, err := d.View(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Tree.Close()
	mounted := inMount(t, task{Root: s.Root, List: true})
	var walk func(p string)
	var out []tree.Change
	walk = func(p string) {
		e, err := s.Tree.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, tree.Change{Entry: e})
		if !e.IsDir() {
			return
		}
		names, err := s.Tree.ReadDir(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			walk(strings.TrimSuffix(p, "/") + "/" + n)
		}
	}
	walk("/")
	unlinked := comparable(mounted, false)
	for i := range unlinked {
		unlinked[i].Digest, unlinked[i].HardLink = "", ""
	}
	if got := comparable(out, false); !reflect.DeepEqual(got, unlinked) {
		t.Fatalf("the tree of %v has\n%+v\nand its mount\n%+v", chain, got, unlinked)
	}
	return mounted
}

// base is the chain that the mutations are done upon.
func base(t testing.TB, d driver) []string {
	old := time.Unix(1_600_000_000, 0)
	commit(t, d, "base-1", nil, []op{
		{Do: "mkdir", Path: "/d", Mode: 0o755},
		{Do: "mkdir", Path: "/d/sub", Mode: 0o750},
		{Do: "write", Path: "/d/sub/deep", Mode: 0o644, Data: "deep"},
		{Do: "write", Path: "/d/a", Mode: 0o644, Data: "a"},
		{Do: "write", Path: "/d/b", Mode: 0o600, Data: "b"},
		{Do: "chown", Path: "/d/b", UID: 10, GID: 20},
		{Do: "mkdir", Path: "/gone", Mode: 0o755},
		{Do: "write", Path: "/gone/x", Mode: 0o644, Data: "x"},
		{Do: "mkdir", Path: "/again", Mode: 0o755},
		{Do: "write", Path: "/again/old", Mode: 0o644, Data: "old"},
		{Do: "write", Path: "/f", Mode: 0o644, Data: "file"},
		{Do: "time", Path: "/f", Time: old},
		{Do: "time", Path: "/d/sub/deep", Time: old},
		{Do: "symlink", Path: "/s", To: "d/a"},
		{Do: "mkdir", Path: "/tmp", Mode: 0o1777},
		{Do: "mkdir", Path: "/empty", Mode: 0o755},
	})
	commit(t, d, "base-2", []string{"base-1"}, []op{
		{Do: "remove", Path: "/gone"},
		{Do: "remove", Path: "/again"},
		{Do: "mkdir", Path: "/again", Mode: 0o755},
		{Do: "write", Path: "/again/new", Mode: 0o644, Data: "new"},
		{Do: "write", Path: "/d/c", Mode: 0o644, Data: "c"},
		{Do: "xattr", Path: "/d/c", To: "user.note", Data: "n"},
	})
	return []string{"base-1", "base-2"}
}

var long = strings.Repeat("n", 200)

const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

var mutations = []struct {
	name string
	ops  []op
	want []string
}{
	{"nothing", nil, nil},
	{"create", []op{{Do: "write", Path: "/new", Mode: 0o640, Data: "n"}}, []string{"/new 100640"}},
	{"create deep", []op{{Do: "write", Path: "/d/sub/new", Mode: 0o644}},
		[]string{"/d 40755", "/d/sub 40750", "/d/sub/new 100644"}},
	{"modify", []op{{Do: "write", Path: "/d/a", Data: "other"}}, []string{"/d 40755", "/d/a 100644"}},
	{"modify with the same size and time", []op{
		{Do: "write", Path: "/f", Data: "fil!"}, {Do: "time", Path: "/f", Time: time.Unix(1_600_000_000, 0)}},
		[]string{"/f 100644"}},
	{"the same content and time", []op{
		{Do: "write", Path: "/f", Data: "file"}, {Do: "time", Path: "/f", Time: time.Unix(1_600_000_000, 0)}}, nil},
	{"touch", []op{{Do: "time", Path: "/f", Time: time.Unix(1_600_000_001, 0)}}, []string{"/f 100644"}},
	{"touch a directory", []op{{Do: "time", Path: "/d", Time: time.Unix(1_600_000_001, 0)}}, nil},
	{"chmod", []op{{Do: "chmod", Path: "/f", Mode: 0o4711}}, []string{"/f 104711"}},
	{"chmod to the same", []op{{Do: "chmod", Path: "/f", Mode: 0o644}}, nil},
	{"chmod and back", []op{{Do: "chmod", Path: "/d/sub/deep", Mode: 0o600}, {Do: "chmod", Path: "/d/sub/deep", Mode: 0o644}}, nil},
	{"chmod a directory", []op{{Do: "chmod", Path: "/d/sub", Mode: 0o2700}}, []string{"/d 40755", "/d/sub 42700"}},
	{"chmod the root", []op{{Do: "chmod", Path: "/", Mode: 0o711}}, []string{"/ 40711"}},
	{"chown", []op{{Do: "chown", Path: "/f", UID: 1000, GID: 70000}}, []string{"/f 100644"}},
	{"chown a symlink", []op{{Do: "chown", Path: "/s", UID: 1, GID: 1}}, []string{"/s 120777 -> d/a"}},
	{"rename", []op{{Do: "rename", Path: "/d/a", To: "/d/z"}}, []string{"/d 40755", "-/d/a", "/d/z 100644"}},
	{"rename a directory", []op{{Do: "rename", Path: "/d", To: "/e"}}, []string{
		"-/d", "/e 40755", "/e/a 100644", "/e/b 100600", "/e/c 100644", "/e/sub 40750", "/e/sub/deep 100644"}},
	{"rename a directory and back", []op{{Do: "rename", Path: "/d", To: "/e"}, {Do: "rename", Path: "/e", To: "/d"}}, nil},
	{"swap", []op{{Do: "rename", Path: "/d/a", To: "/t"}, {Do: "rename", Path: "/d/b", To: "/d/a"}, {Do: "rename", Path: "/t", To: "/d/b"}},
		[]string{"/d 40755", "/d/a 100600", "/d/b 100644"}},
	{"delete", []op{{Do: "remove", Path: "/d/b"}}, []string{"/d 40755", "-/d/b"}},
	{"delete what is new", []op{{Do: "write", Path: "/d/n", Mode: 0o644}, {Do: "remove", Path: "/d/n"}}, nil},
	{"delete a directory", []op{{Do: "remove", Path: "/d"}}, []string{"-/d"}},
	{"delete all", []op{{Do: "remove", Path: "/d"}, {Do: "remove", Path: "/again"}, {Do: "remove", Path: "/f"},
		{Do: "remove", Path: "/s"}, {Do: "remove", Path: "/tmp"}, {Do: "remove", Path: "/empty"}},
		[]string{"-/again", "-/d", "-/empty", "-/f", "-/s", "-/tmp"}},
	{"delete and make a directory", []op{{Do: "remove", Path: "/d"}, {Do: "mkdir", Path: "/d", Mode: 0o755},
		{Do: "write", Path: "/d/b", Mode: 0o644, Data: "2"}},
		[]string{"/d 40755", "-/d/a", "/d/b 100644", "-/d/c", "-/d/sub"}},
	{"delete and make directories", []op{{Do: "remove", Path: "/d"}, {Do: "mkdir", Path: "/d", Mode: 0o755},
		{Do: "mkdir", Path: "/d/sub", Mode: 0o750}},
		[]string{"/d 40755", "-/d/a", "-/d/b", "-/d/c", "/d/sub 40750", "-/d/sub/deep"}},
	{"delete and make an empty directory", []op{{Do: "remove", Path: "/empty"}, {Do: "mkdir", Path: "/empty", Mode: 0o755}}, nil},
	{"a file for a directory", []op{{Do: "remove", Path: "/d"}, {Do: "write", Path: "/d", Mode: 0o644}}, []string{"/d 100644"}},
	{"a directory for a file", []op{{Do: "remove", Path: "/f"}, {Do: "mkdir", Path: "/f", Mode: 0o755}, {Do: "write", Path: "/f/x", Mode: 0o644}},
		[]string{"/f 40755", "/f/x 100644"}},
	{"a symlink for a directory", []op{{Do: "remove", Path: "/d/sub"}, {Do: "symlink", Path: "/d/sub", To: "/tmp"}},
		[]string{"/d 40755", "/d/sub 120777 -> /tmp"}},
	{"a directory for a symlink", []op{{Do: "remove", Path: "/s"}, {Do: "mkdir", Path: "/s", Mode: 0o700}}, []string{"/s 40700"}},
	{"another symlink", []op{{Do: "remove", Path: "/s"}, {Do: "symlink", Path: "/s", To: "/etc/\xff"}}, []string{"/s 120777 -> /etc/\xff"}},
	{"in an opaque directory of the lower", []op{{Do: "write", Path: "/again/old", Mode: 0o644, Data: "back"}},
		[]string{"/again 40755", "/again/old 100644"}},
	{"what the lower removed", []op{{Do: "mkdir", Path: "/gone", Mode: 0o755}, {Do: "write", Path: "/gone/y", Mode: 0o644}},
		[]string{"/gone 40755", "/gone/y 100644"}},
	{"hard links", []op{{Do: "write", Path: "/z", Mode: 0o644, Data: "z"}, {Do: "link", Path: "/tmp/y", To: "/z"}, {Do: "link", Path: "/d/x", To: "/z"}},
		[]string{"/d 40755", "/d/x 100644", "/tmp 41777", "/tmp/y 100644 = /d/x", "/z 100644 = /d/x"}},
	{"a hard link to a lower file", []op{{Do: "link", Path: "/g", To: "/f"}}, []string{"/g 100644"}},
	{"a hard link to a symlink", []op{{Do: "symlink", Path: "/l1", To: "x"}, {Do: "link", Path: "/l2", To: "/l1"}},
		[]string{"/l1 120777 -> x", "/l2 120777 = /l1 -> x"}},
	{"xattrs", []op{{Do: "xattr", Path: "/f", To: "user.a", Data: "\x00\xff"}}, []string{"/f 100644"}},
	{"xattrs of a directory", []op{{Do: "xattr", Path: "/d/sub", To: "user.a", Data: "1"}}, []string{"/d 40755", "/d/sub 40750"}},
	{"capabilities", []op{{Do: "write", Path: "/ping", Mode: 0o755, Data: "p"}, {Do: "xattr", Path: "/ping", To: "security.capability", Data: capability}},
		[]string{"/ping 100755"}},
	{"devices", []op{
		{Do: "mknod", Path: "/null", Mode: unix.S_IFCHR | 0o666, Dev: unix.Mkdev(1, 3)},
		{Do: "mknod", Path: "/disk", Mode: unix.S_IFBLK | 0o660, Dev: unix.Mkdev(259, 300)},
		{Do: "mknod", Path: "/pipe", Mode: unix.S_IFIFO | 0o600}},
		[]string{"/disk 60660", "/null 20666", "/pipe 10600"}},
	{"sparse", []op{{Do: "sparse", Path: "/big", Mode: 0o644, Data: "start", Size: 8 << 20}}, []string{"/big 100644"}},
	{"long and odd names", []op{
		{Do: "mkdir", Path: "/" + long, Mode: 0o755}, {Do: "write", Path: "/" + long + "/" + long, Mode: 0o644},
		{Do: "write", Path: "/\xff\n\t\\", Mode: 0o644, Data: "odd"}, {Do: "write", Path: "/d.x", Mode: 0o644}, {Do: "write", Path: "/d/.whx", Mode: 0o644}},
		[]string{"/d 40755", "/d/.whx 100644", "/d.x 100644", "/" + long + " 40755", "/" + long + "/" + long + " 100644", "/\xff\n\t\\ 100644"}},
}

// TestDrivers does each mutation to each driver, and compares what it lists,
// what its tar makes of the chain, and what a tree makes of the same.
func TestDrivers(t *testing.T) {
	lists := map[string][]tree.Change{}
	for _, dr := range drivers {
		t.Run(dr.name, func(t *testing.T) {
			d := open(t, dr.name)
			chain := base(t, d)
			for i, m := range mutations {
				t.Run(m.name, func(t *testing.T) {
					id := fmt.Sprintf("m%d", i)
					got := commit(t, d, id, chain, m.ops)
					if b := briefs(got); !reflect.DeepEqual(b, m.want) {
						t.Fatalf("Changes = %q, want %q", b, m.want)
					}
					if first, ok := lists[m.name]; !ok {
						lists[m.name] = got
					} else if !reflect.DeepEqual(comparable(got, true), comparable(first, true)) || layer.Digest(got) != layer.Digest(first) {
						t.Errorf("Changes = %+v, want as the first driver's %+v", comparable(got, true), comparable(first, true))
					}
					roundTrip(t, d, id, chain, got)
					throughTree(t, d, id, chain, m.ops, got)
				})
			}
		})
	}
}

// roundTrip writes the tar of layer id, and applies it upon chain and alone:
// the trees must be the same.
func roundTrip(t *testing.T, d driver, id string, chain []string, changes []tree.Change) {
	t.Helper()
	var b bytes.Buffer
	if _, err := layer.Write(t.Context(), &b, layer.All(changes), d.Dir(id), layer.Options{}); err != nil {
		t.Fatal(err)
	}
	listed := func(id string) []tree.Change {
		out := comparable(list(t, d, append(chain[:2:2], id)), false)
		for i := range out {
			// A link between a changed file and a lower one is lost in the tar.
			if out[i].HardLink == "/f" {
				out[i].HardLink = ""
			}
		}
		return out
	}
	want := listed(id)
	for _, alone := range []bool{false, true} {
		id, upon := id+"-applied", chain
		if alone {
			id, upon = id+"-alone", nil
		}
		s, err := d.Prepare(t.Context(), id, upon)
		if err != nil {
			t.Fatal(err)
		}
		_, err = layer.Apply(t.Context(), bytes.NewReader(b.Bytes()), s.Tree, layer.ApplyOptions{Complete: !alone})
		if cerr := s.Tree.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Commit(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		got := listed(id)
		if alone && len(got) > 0 && !hasRoot(changes) {
			got[0] = want[0] // the root is the topmost layer's, and a tar has none
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("the layer's tar (alone: %v) makes\n%+v\nwant\n%+v", alone, got, want)
		}
	}
}

func hasRoot(cs []tree.Change) bool { return len(cs) > 0 && cs[0].Path == "/" }

// throughTree does ops without a mount: the changes must be the same.
func throughTree(t *testing.T, d driver, id string, chain []string, ops []op, want []tree.Change) {
	t.Helper()
	id += "-tree"
	s, err := d.Prepare(t.Context(), id, chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range ops {
		can, err := o.inTree(s.Tree)
		if err != nil {
			t.Fatalf("%s %q in the tree: %v", o.Do, o.Path, err)
		}
		if !can {
			s.Tree.Close()
			if err := d.Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	if err := s.Tree.Close(); err != nil {
		t.Fatal(err)
	}
	if got := seal(t, d, id); !reflect.DeepEqual(comparable(got, true), comparable(want, true)) {
		t.Errorf("the same through the tree = %+v, want %+v", comparable(got, true), comparable(want, true))
	}
}
