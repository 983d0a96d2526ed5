package executor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/llb"
)

// The semantics are BuildKit's: github.com/tonistiigi/fsutil/copy.
func TestCopy(t *testing.T) {
	base := filesOf(scratch, "/etc/passwd user:x:7:8::/:\n", "/etc/group staff:x:50:\n", "/dir/", "/dir/old old")
	below := []string{
		"/dir/ 0755 0:0", "/dir/old 0644 0:0 old", "/etc/ 0755 0:0",
		"/etc/group 0644 0:0 staff:x:50:\n", "/etc/passwd 0644 0:0 user:x:7:8::/:\n",
	}
	tests := []struct {
		name    string
		context []string // "name text"
		copies  []llb.Copy
		want    []string // beside, or in place of, what the base has
		err     string
	}{
		{"a file", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/b"}}, []string{"/b 0644 0:0 1"}, ""},
		{"into a directory", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/dir"}}, []string{"/dir/a 0644 0:0 1"}, ""},
		{"to a new directory", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/x/y/"}},
			[]string{"/x/ 0755 0:0", "/x/y/ 0755 0:0", "/x/y/a 0644 0:0 1"}, ""},
		{"under another name in a new one", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/x/y"}},
			[]string{"/x/ 0755 0:0", "/x/y 0644 0:0 1"}, ""},
		{"a directory's contents", []string{"d/a 1", "d/s/b 2"}, []llb.Copy{{Sources: []string{"/d"}, Dest: "/dir"}},
			[]string{"/dir/a 0644 0:0 1", "/dir/s/ 0755 0:0", "/dir/s/b 0644 0:0 2"}, ""},
		{"two without a slash: the last wins", []string{"a 1", "b 2"}, []llb.Copy{{Sources: []string{"/a", "/b"}, Dest: "/f"}},
			[]string{"/f 0644 0:0 2"}, ""},
		{"owner by name", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/x/a", Owner: "user:staff"}},
			[]string{"/x/ 0755 7:50", "/x/a 0644 7:50 1"}, ""},
		{"a name's group is its passwd entry's", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/a", Owner: "user"}},
			[]string{"/a 0644 7:8 1"}, ""},
		{"a number's group is itself", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/a", Owner: "9"}},
			[]string{"/a 0644 9:9 1"}, ""},
		{"an unknown owner is root", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/a", Owner: "nobody:nogroup"}},
			[]string{"/a 0644 0:0 1"}, ""},
		{"too large a number too", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/a", Owner: "2147483648:4294967296"}},
			[]string{"/a 0644 0:0 1"}, ""},
		{"an empty group is root", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/a", Owner: "user:"}},
			[]string{"/a 0644 7:0 1"}, ""},
		{"group alone", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/a", Owner: ":staff"}},
			[]string{"/a 0644 0:50 1"}, ""},
		{"octal mode, parents too", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/x/a", Mode: "4711"}},
			[]string{"/x/ 0711 0:0", "/x/a 4711 0:0 1"}, ""},
		{"symbolic mode", []string{"d/a 1"}, []llb.Copy{{Sources: []string{"/d"}, Dest: "/x/", Mode: "go=,u+X"}},
			[]string{"/x/ 0755 0:0", "/x/a 0600 0:0 1"}, ""},
		{"wildcard", []string{"a.txt 1", "b.txt 2", "c.go 3"}, []llb.Copy{{Sources: []string{"/*.txt"}, Dest: "/x/", Wildcards: true}},
			[]string{"/x/ 0755 0:0", "/x/a.txt 0644 0:0 1", "/x/b.txt 0644 0:0 2"}, ""},
		{"a wildcard without a match", nil, []llb.Copy{{Sources: []string{"/*.txt"}, Dest: "/x/", Wildcards: true}}, nil, ""},
		{"a link is followed at the source", []string{"l -> a", "a 1"}, []llb.Copy{{Sources: []string{"/l"}, Dest: "/x"}},
			[]string{"/x 0644 0:0 1"}, ""},
		{"and kept below it", []string{"d/l -> a"}, []llb.Copy{{Sources: []string{"/d"}, Dest: "/x/"}},
			[]string{"/x/ 0755 0:0", "/x/l -> a"}, ""},
		{"hard links", []string{"d/a 1", "d/b = d/a"}, []llb.Copy{{Sources: []string{"/d"}, Dest: "/x/"}},
			[]string{"/x/ 0755 0:0", "/x/a 0644 0:0 links 2 1", "/x/b 0644 0:0 links 2 1"}, ""},
		{"a link in the context leads nowhere else", []string{"l -> ../../../etc/hostname"},
			[]llb.Copy{{Sources: []string{"/l"}, Dest: "/x"}}, nil, `"/l": not found`},
		{"excluded", []string{"d/a 1", "d/b 2", "d/s/c 3"}, []llb.Copy{{Sources: []string{"/d"}, Dest: "/x/", Excludes: []string{"b", "s"}}},
			[]string{"/x/ 0755 0:0", "/x/a 0644 0:0 1"}, ""},
		{"parents", []string{"d/s/a 1", "d/b 2"}, []llb.Copy{{Sources: []string{"/d/./s/a"}, Dest: "/x/", Parents: true}},
			[]string{"/x/ 0755 0:0", "/x/s/ 0755 0:0", "/x/s/a 0644 0:0 1"}, ""},
		{"a file in a directory's place", []string{"d/old/f 1"}, []llb.Copy{{Sources: []string{"/d"}, Dest: "/dir"}}, nil,
			"cannot copy the directory old onto /dir/old, which is none"},
		{"a directory in a file's place", []string{"d/dir 1"}, []llb.Copy{{Sources: []string{"/d"}, Dest: "/"}}, nil,
			"cannot put dir in place of the directory /dir"},
		{"through a file", []string{"a 1"}, []llb.Copy{{Sources: []string{"/a"}, Dest: "/dir/old/x"}}, nil, "not a directory"},
		{"what is not there", []string{"a 1"}, []llb.Copy{{Sources: []string{"/b"}, Dest: "/x"}}, nil, `"/b": not found`},
		{"a link over a file of the same step", []string{"a 1", "d/x -> a"},
			[]llb.Copy{{Sources: []string{"/a"}, Dest: "/x"}, {Sources: []string{"/d"}, Dest: "/"}}, []string{"/x -> a"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			for _, l := range tt.context {
				name, text, _ := strings.Cut(l, " ")
				r.write(name, text)
			}
			var f llb.File
			in := []*llb.Node{base}
			for i, c := range tt.copies {
				in = append(in, contextOf(c))
				c.Input = i + 1
				f.Actions = append(f.Actions, c)
			}
			n := llb.New(f, in...)
			got, _, err := r.build(n)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q in it", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			r.check(tt.name, got, merged(below, tt.want)...)
			if got.Torn {
				t.Error("the result is torn, though nothing changed")
			}
			if _, w := r.mustBuild(n); len(w.ran) > 0 {
				t.Errorf("the second build runs %q: %q", w.ran, w.why)
			}
		})
	}
}

// merged sorts two lists of "path …" in the order of a walk.
func merged(a, b []string) []string {
	out := append(append([]string{}, a...), b...)
	key := func(s string) string {
		p, _, _ := strings.Cut(s, " ")
		return strings.ReplaceAll(strings.TrimSuffix(p, "/"), "/", "\x01")
	}
	for i := range out {
		for j := i + 1; j < len(out); j++ {
			if key(out[j]) < key(out[i]) {
				out[i], out[j] = out[j], out[i]
			}
		}
	}
	return out
}

func TestCopyFromScratchNeedsNumbers(t *testing.T) {
	r := newRig(t)
	r.write("a", "1")
	for owner, want := range map[llb.Owner]string{"user": "no /etc/passwd", "5:staff": "no /etc/group", "root": "", "5:6": ""} {
		_, _, err := r.build(copyOf(scratch, llb.Copy{Sources: []string{"/a"}, Dest: "/a", Owner: owner}))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("--chown=%s on scratch: %v, want %q", owner, err, want)
		}
	}
}

func TestCopyOddFiles(t *testing.T) {
	r := newRig(t)
	fifo, dev := filepath.Join(r.dir, "fifo"), filepath.Join(r.dir, "null")
	if err := unix.Mkfifo(fifo, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(dev, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	t.Chdir(r.dir)
	if err := unix.Bind(sock, &unix.SockaddrUnix{Name: "sock"}); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"fifo": 0o640, "null": 0o666, "sock": 0o755} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	r.put("suid", "x", 0o755|os.ModeSetuid)
	r.put("none", "x", 0)
	for name, value := range map[string]string{"user.x": "y", "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"} {
		if err := unix.Setxattr("none", name, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	got, _ := r.mustBuild(copyOf(scratch, llb.Copy{Sources: []string{"/"}, Dest: "/", Owner: "3:4"}))
	r.check("odd files", got,
		"/fifo 0640 3:4 type 10000 0,0", "/none 0000 3:4 x", "/null 0666 3:4 type 20000 1,3", "/sock 0755 3:4 ", "/suid 4755 3:4 x")
	view, err := r.store.View(t.Context(), got.Layers)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Tree.Close()
	e, err := view.Tree.Lstat("/none")
	if err != nil || len(e.Xattrs) != 0 {
		t.Errorf("extended attributes %v, %v, want none", e.Xattrs, err)
	}
}

// A directory that is there keeps mode and owner; the time is the source's.
func TestCopyUponADirectory(t *testing.T) {
	r := newRig(t)
	r.write("d/a", "1")
	at := time.Unix(1_500_000_000, 0)
	if err := os.Chtimes(filepath.Join(r.dir, "d"), at, at); err != nil {
		t.Fatal(err)
	}
	base := llb.New(llb.File{Actions: []llb.Action{llb.Mkdir{Path: "/x", Mode: 0o700, Owner: "5:6"}}}, scratch)
	got, _ := r.mustBuild(copyOf(base, llb.Copy{Sources: []string{"/d"}, Dest: "/x"}))
	r.check("upon a directory", got, "/x/ 0700 5:6", "/x/a 0644 0:0 1")
	view, err := r.store.View(t.Context(), got.Layers)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Tree.Close()
	if e, err := view.Tree.Lstat("/x"); err != nil || !e.ModTime.Equal(at) {
		t.Errorf("the time is %v, %v, want the source's", e.ModTime, err)
	}
}

// A context that changes between pinning and copying: the build goes on with
// what it found, and nothing is recorded under what was pinned.
func TestTornCopy(t *testing.T) {
	file := func(name string) func(*rig) string {
		return func(r *rig) string { return filepath.Join(r.dir, name) }
	}
	old := time.Now().Add(-time.Hour)
	tests := []struct {
		name   string
		change func(r *rig) error
		torn   bool
	}{
		{"nothing", func(*rig) error { return nil }, false},
		{"bytes", func(r *rig) error { return os.WriteFile(file("d/a")(r), []byte("2"), 0o644) }, true},
		{"bytes, with the time set back", func(r *rig) error {
			st, _ := os.Stat(file("d/a")(r))
			if err := os.WriteFile(file("d/a")(r), []byte("2"), 0o644); err != nil {
				return err
			}
			return os.Chtimes(file("d/a")(r), st.ModTime(), st.ModTime())
		}, true},
		{"the same bytes again", func(r *rig) error { return os.WriteFile(file("d/a")(r), []byte("1"), 0o644) }, false},
		{"the time alone", func(r *rig) error { return os.Chtimes(file("d/a")(r), old, old) }, false},
		{"the mode", func(r *rig) error { return os.Chmod(file("d/a")(r), 0o600) }, true},
		{"a file is gone", func(r *rig) error { return os.Remove(file("d/b")(r)) }, true},
		{"a new file", func(r *rig) error { return os.WriteFile(file("d/c")(r), nil, 0o644) }, true},
		{"a new link", func(r *rig) error { return os.Symlink("a", file("d/c")(r)) }, true},
		{"a new directory", func(r *rig) error { return os.Mkdir(file("d/c")(r), 0o755) }, true},
		{"a hard link more", func(r *rig) error { return os.Link(file("d/a")(r), file("d/c")(r)) }, true},
		{"outside what is copied", func(r *rig) error { return os.WriteFile(file("other")(r), nil, 0o644) }, false},
	}
	for _, tt := range tests {
		for _, kind := range []string{"copy", "add", "mount"} {
			t.Run(tt.name+" "+kind, func(t *testing.T) {
				r := newRig(t)
				r.write("d/a", "1")
				r.write("d/b", "2")
				c := llb.Copy{Sources: []string{"/d"}, Dest: "/x/", Unpack: kind == "add"}
				n := copyOf(scratch, c)
				if kind == "mount" {
					n = llb.New(llb.Exec{Args: []string{"x"}, Network: llb.NetworkHost, Mounts: []llb.Mount{{
						Type: llb.MountBind, Target: "/m", Input: 1, Source: "/d", ReadOnly: true,
					}}}, scratch, contextOf(c))
				}
				n = llb.New(llb.Exec{Args: []string{"upon it"}, Network: llb.NetworkHost}, n)
				time.Sleep(25 * time.Millisecond) // or the stamps prove nothing
				got, _, err := r.buildWith(n, func() {
					if err := tt.change(r); err != nil {
						t.Fatal(err)
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				if got.Torn != tt.torn {
					t.Errorf("torn: %v, want %v", got.Torn, tt.torn)
				}
				// What is built now is what is there now.
				again, w := r.mustBuild(n)
				if tt.torn && len(w.ran) == 0 {
					t.Error("the next build takes the torn result from the cache")
				}
				if !tt.torn && len(w.ran) > 0 {
					t.Errorf("the next build runs %q: %q", w.ran, w.why)
				}
				if again.Torn {
					t.Error("the next build is torn too")
				}
			})
		}
	}
}
