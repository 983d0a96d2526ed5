package tree

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A file is what its entry says, whatever the directory makes of new files.
func TestDirCreate(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: gives files away")
	}
	dirs := []struct {
		name string
		make func(dir string) error
	}{
		{"plain", func(string) error { return nil }},
		{"setgid", func(dir string) error { return errors.Join(os.Chown(dir, 0, 9), os.Chmod(dir, 0o755|os.ModeSetgid)) }},
		{"default ACL", func(dir string) error {
			// The attribute in the form of linux/posix_acl_xattr.h: version 2, then
			// tag, permissions and id of each entry: rwx for the owner alone.
			acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 0, 0, 255, 255, 255, 255, 0x20, 0, 0, 0, 255, 255, 255, 255}
			return unix.Lsetxattr(dir, "system.posix_acl_default", acl, 0)
		}},
	}
	at := time.Unix(1_600_000_000, 7)
	entries := []Entry{
		{Mode: unix.S_IFREG | 0o644}, {Mode: unix.S_IFREG | 0o777}, {Mode: unix.S_IFREG | 0o4755}, {Mode: unix.S_IFREG},
		{Mode: unix.S_IFREG | 0o644, UID: 3, GID: 4}, {Mode: unix.S_IFREG | 0o6711, UID: 3}, {Mode: unix.S_IFREG | 0o640, GID: 9},
	}
	for _, d := range dirs {
		upper := t.TempDir()
		if err := os.Chmod(upper, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := d.make(upper); err != nil {
			if errors.Is(err, unix.ENOTSUP) {
				continue
			}
			t.Fatal(err)
		}
		tr := open(t, upper, nil)
		dir, err := tr.OpenDir("/")
		if err != nil {
			t.Fatal(err)
		}
		if !dir.Alone {
			t.Errorf("%s: a directory of the upper layer is not alone", d.name)
		}
		for i, e := range entries {
			e.ModTime = at
			name := string(rune('a' + i))
			fd, err := dir.Create(name, &e)
			if err == nil {
				_, err = unix.Write(fd, []byte("text"))
			}
			if err == nil {
				err = dir.Finish(fd, name, &e)
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := tr.Lstat("/" + name)
			if err != nil || got.Mode != e.Mode || got.UID != e.UID || got.GID != e.GID || !got.ModTime.Equal(at) || got.Size != 4 {
				t.Errorf("%s: made %+v, %v, want %+v", d.name, got, err, e)
			}
			if _, err := dir.Create(name, &e); !errors.Is(err, fs.ErrExist) {
				t.Errorf("%s: Create of what is there = %v", d.name, err)
			}
		}
		dir.Release()
	}
}

// The mode is the entry's whatever the umask of the process.
func TestDirUmask(t *testing.T) {
	if os.Getenv("DIR_UMASK") == "" {
		cmd := exec.Command("/bin/sh", "-c", `umask 0077; exec "$0" -test.run '^TestDirUmask$'`, os.Args[0])
		cmd.Env = append(os.Environ(), "DIR_UMASK=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("with another umask: %v\n%s", err, out)
		}
		return
	}
	tr := open(t, t.TempDir(), nil)
	dir, err := tr.OpenDir("/")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Release()
	for _, e := range []Entry{{Mode: unix.S_IFREG | 0o600}, {Mode: unix.S_IFREG | 0o666}, {Mode: unix.S_IFREG | 0o755}} {
		e.UID, e.GID, e.ModTime = os.Getuid(), os.Getgid(), time.Now()
		name := "f" + string(rune('0'+e.Perm()%7))
		fd, err := dir.Create(name, &e)
		if err == nil {
			err = dir.Finish(fd, name, &e)
		}
		if got, lerr := tr.Lstat("/" + name); err != nil || lerr != nil || got.Mode != e.Mode {
			t.Errorf("made %o, %v, %v, want %o", got.Mode, err, lerr, e.Mode)
		}
	}
}

// Putting files into a directory brings it up, and leaves its time.
func TestDirOfLowerLayer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have owners")
	}
	lower, upper := t.TempDir(), t.TempDir()
	at := time.Unix(1_500_000_000, 0)
	if err := errors.Join(os.Mkdir(lower+"/d", 0o750), os.WriteFile(lower+"/d/old", nil, 0o644), os.Chtimes(lower+"/d", at, at)); err != nil {
		t.Fatal(err)
	}
	tr, err := New(upper, []string{lower})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := tr.OpenDir("/d")
	if err != nil {
		t.Fatal(err)
	}
	if dir.Alone {
		t.Error("a directory that a lower layer has is taken to be alone")
	}
	e := Entry{Mode: unix.S_IFREG | 0o644, ModTime: at}
	fd, err := dir.Create("new", &e)
	if err == nil {
		err = dir.Finish(fd, "new", &e)
	}
	if err != nil {
		t.Fatal(err)
	}
	gone, err := dir.Create("gone", &e)
	if err != nil {
		t.Fatal(err)
	}
	dir.Remove(gone, "gone")
	dir.Release()
	if names, err := tr.ReadDir("/d"); err != nil || len(names) != 2 {
		t.Errorf("the directory holds %q, %v", names, err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(upper + "/d")
	if err != nil || !st.ModTime().Equal(at) || st.Mode().Perm() != 0o750 {
		t.Errorf("the directory is %v, %v, want the lower one's mode and time", st, err)
	}
	if _, err := open(t, "", []string{lower}).OpenDir("/d"); !errors.Is(err, unix.EROFS) {
		t.Errorf("OpenDir of a tree that is only read = %v", err)
	}
}
