package drivertest

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

const helperEnv = "BUILD_DRIVERTEST_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		if err := help(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(onOverlay); dir != "" {
		if err := moveToOverlay(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// task is what the helper process does: mount, change, list.
type task struct {
	Root oci.Mount
	Ops  []op
	List bool
}

// op is one change.
type op struct {
	Do       string
	Path     string
	To       string // of rename, link and symlink; name of an xattr
	Data     string
	Mode     uint32
	UID, GID int
	Size     int64
	Dev      uint64
	Time     time.Time
}

// inMount runs t in a mount namespace of its own.
func inMount(tb testing.TB, t task) []tree.Change {
	tb.Helper()
	var in, out, errs bytes.Buffer
	if err := gob.NewEncoder(&in).Encode(t); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		tb.Fatalf("helper: %v: %s", err, errs.String())
	}
	if !t.List {
		return nil
	}
	changes, err := layer.Collect(layer.ReadEntries(&out))
	if err != nil {
		tb.Fatal(err)
	}
	return changes
}

func help() error {
	var t task
	if err := gob.NewDecoder(os.Stdin).Decode(&t); err != nil {
		return err
	}
	unix.Umask(0)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	root := "/mnt"
	if err := mount(t.Root, root); err != nil {
		return err
	}
	defer unix.Unmount(root, 0)
	for _, o := range t.Ops {
		if err := o.mounted(root); err != nil {
			return fmt.Errorf("%s %q: %w", o.Do, o.Path, err)
		}
	}
	if !t.List {
		return nil
	}
	changes, err := layer.Collect(layer.Diff(context.Background(), root, nil, layer.DiffOptions{}))
	if err != nil {
		return err
	}
	if err := layer.Hash(context.Background(), changes, root, 2); err != nil {
		return err
	}
	return layer.WriteEntries(os.Stdout, changes)
}

// mount mounts m at target. Lower directories go by file descriptors, which are
// short and need no escapes.
func mount(m oci.Mount, target string) error {
	var flags uintptr
	var data, lowers []string
	for _, o := range m.Options {
		dir, ok := strings.CutPrefix(o, "lowerdir+=")
		switch {
		case ok:
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			lowers = append(lowers, fmt.Sprintf("/proc/self/fd/%d", fd))
		case o == "ro":
			flags |= unix.MS_RDONLY
		case o == "bind":
			flags |= unix.MS_BIND
		case o == "rw":
		default:
			data = append(data, o)
		}
	}
	if lowers != nil {
		data = append(data, "lowerdir="+strings.Join(lowers, ":"))
	}
	if err := unix.Mount(m.Source, target, m.Type, flags, strings.Join(data, ",")); err != nil {
		return fmt.Errorf("mount %+v: %w", m, err)
	}
	if flags&unix.MS_BIND != 0 && flags&unix.MS_RDONLY != 0 {
		return unix.Mount("", target, "", flags|unix.MS_REMOUNT, "")
	}
	return nil
}

// mounted does o under root, as a process in the mount would.
func (o op) mounted(root string) error {
	p := filepath.Join(root, o.Path)
	switch o.Do {
	case "write":
		return os.WriteFile(p, []byte(o.Data), os.FileMode(o.Mode))
	case "sparse":
		if err := os.WriteFile(p, []byte(o.Data), os.FileMode(o.Mode)); err != nil {
			return err
		}
		return os.Truncate(p, o.Size)
	case "chmod":
		return unix.Chmod(p, o.Mode)
	case "chown":
		return unix.Lchown(p, o.UID, o.GID)
	case "mkdir":
		return unix.Mkdir(p, o.Mode)
	case "rename":
		// As mv(1): what cannot be renamed across layers is copied.
		err := os.Rename(p, filepath.Join(root, o.To))
		if errors.Is(err, unix.EXDEV) {
			out, err := exec.Command("mv", "-T", p, filepath.Join(root, o.To)).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}
		return err
	case "remove":
		return os.RemoveAll(p)
	case "symlink":
		return os.Symlink(o.To, p)
	case "link":
		return os.Link(filepath.Join(root, o.To), p)
	case "xattr":
		return unix.Lsetxattr(p, o.To, []byte(o.Data), 0)
	case "mknod":
		return unix.Mknod(p, o.Mode, int(o.Dev))
	case "time":
		return os.Chtimes(p, o.Time, o.Time)
	}
	return errors.New("unknown")
}

// inTree does o in t; false: a tree cannot.
func (o op) inTree(t *tree.Tree) (bool, error) {
	change := func(f func(e *tree.Entry)) (bool, error) {
		e, err := t.Lstat(o.Path)
		if err != nil {
			return true, err
		}
		f(&e)
		return true, t.SetMeta(o.Path, e)
	}
	switch o.Do {
	case "write", "sparse":
		e, err := t.Lstat(o.Path)
		if err != nil {
			e = tree.Entry{Mode: unix.S_IFREG | o.Mode}
		}
		e.ModTime = time.Now()
		f, err := t.Create(o.Path)
		if err != nil {
			return true, err
		}
		defer f.Close()
		if _, err := f.WriteString(o.Data); err != nil {
			return true, err
		}
		if o.Do == "sparse" {
			if err := f.Truncate(o.Size); err != nil {
				return true, err
			}
		}
		return true, t.SetMeta(o.Path, e)
	case "chmod":
		return change(func(e *tree.Entry) { e.Mode = e.Type() | o.Mode })
	case "chown":
		return change(func(e *tree.Entry) { e.UID, e.GID = o.UID, o.GID })
	case "xattr":
		return change(func(e *tree.Entry) { e.Xattrs = map[string]string{o.To: o.Data} })
	case "time":
		return change(func(e *tree.Entry) { e.ModTime = o.Time })
	case "mkdir":
		return true, t.Mkdir(o.Path, o.Mode)
	case "remove":
		return true, t.RemoveAll(o.Path)
	case "symlink":
		return true, t.Symlink(o.To, o.Path)
	case "link":
		return true, t.Link(o.To, o.Path)
	case "mknod":
		return true, t.Mknod(o.Path, o.Mode, unix.Major(o.Dev), unix.Minor(o.Dev))
	}
	return false, nil
}
