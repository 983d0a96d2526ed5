package executor

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/llb"
)

// A context on another file system than the state directory, from which the
// kernel may not copy by itself: files below and above what is read at once.
func TestCopyAcrossFilesystems(t *testing.T) {
	r := newRig(t)
	shm, err := os.MkdirTemp("/dev/shm", "context")
	if err != nil {
		t.Skipf("needs a second file system: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	r.dir = shm
	want := map[string][]byte{}
	for name, size := range map[string]int{"none": 0, "one": 1, "even": smallFile, "large": smallFile + 1, "huge": 5*smallFile - 3} {
		want[name] = bytes.Repeat([]byte("0123456789abcde"), size/15+1)[:size]
		r.put("d/"+name, string(want[name]), 0o640)
	}
	time.Sleep(25 * time.Millisecond)
	res, _ := r.mustBuild(copyOf(scratch, llb.Copy{Sources: []string{"/d"}, Dest: "/"}))
	dir, _ := r.store.Shareable(res.Layers[0].ID)
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s has %d bytes, %v, want the %d of the context", name, len(got), err, len(text))
		}
	}
	var a, b unix.Stat_t
	if err := unix.Stat(shm, &a); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(dir, &b); err != nil || a.Dev == b.Dev {
		t.Skip("/dev/shm is no other file system")
	}
}
