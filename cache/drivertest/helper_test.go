package drivertest

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
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
		if err := help(os.Stdin, os.Stdout); err != nil {
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
	code := m.Run()
	if err := mounts.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		code = 1
	}
	os.Exit(code)
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

// answer is what the helper says to a task.
type answer struct {
	Err     string
	Entries []byte // in the form of layer.WriteEntries
}

// helper is the process that mounts, in a mount namespace of its own.
type helper struct {
	mu  sync.Mutex
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *gob.Encoder
	dec *gob.Decoder
}

var mounts helper

func (h *helper) start() error {
	if h.cmd != nil {
		return nil
	}
	cmd := exec.Command("/proc/self/exe")
	// The race detector makes each process sleep for a second as it ends.
	cmd.Env = append(os.Environ(), helperEnv+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	h.cmd, h.in, h.enc, h.dec = cmd, in, gob.NewEncoder(in), gob.NewDecoder(out)
	return nil
}

func (h *helper) stop() error {
	if h.cmd == nil {
		return nil
	}
	h.in.Close()
	return h.cmd.Wait()
}

func (h *helper) do(t task) (answer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var a answer
	err := h.start()
	if err == nil {
		err = h.enc.Encode(t)
	}
	if err == nil {
		err = h.dec.Decode(&a)
	}
	return a, err
}

// inMount has the helper do t.
func inMount(tb testing.TB, t task) []tree.Change {
	tb.Helper()
	a, err := mounts.do(t)
	if err == nil && a.Err != "" {
		err = errors.New(a.Err)
	}
	if err != nil {
		tb.Fatalf("in a mount: %v", err)
	}
	if !t.List {
		return nil
	}
	changes, err := layer.Collect(layer.ReadEntries(bytes.NewReader(a.Entries)))
	if err != nil {
		tb.Fatal(err)
	}
	return changes
}

// help is the helper: it answers tasks until there are no more.
func help(in io.Reader, out io.Writer) error {
	unix.Umask(0)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	dec, enc := gob.NewDecoder(in), gob.NewEncoder(out)
	for {
		var t task
		err := dec.Decode(&t)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var a answer
		if a.Entries, err = t.do("/mnt"); err != nil {
			a.Err = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

func (t task) do(root string) (entries []byte, err error) {
	if err := mount(t.Root, root); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Unmount(root, 0)) }()
	for _, o := range t.Ops {
		if err := o.mounted(root); err != nil {
			return nil, fmt.Errorf("%s %q: %w", o.Do, o.Path, err)
		}
	}
	if !t.List {
		return nil, nil
	}
	changes, err := layer.Collect(layer.Diff(context.Background(), root, nil, layer.DiffOptions{}))
	if err != nil {
		return nil, err
	}
	if err := layer.Hash(context.Background(), changes, root, 2); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = layer.WriteEntries(&b, changes)
	return b.Bytes(), err
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
