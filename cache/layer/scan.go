package layer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// found is what a layer's directory has under a name.
type found struct {
	tree.Entry
	ctime    unix.Timespec
	whiteout bool
	opaque   bool
}

// scan reads name in the open directory dir; full is its path in the layer.
func scan(dir int, name, full string) (found, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return found{}, &os.PathError{Op: "lstat", Path: full, Err: err}
	}
	f := found{ctime: st.Ctim, Entry: tree.EntryOf(full, &st)}
	if f.whiteout = f.Type() == unix.S_IFCHR && st.Rdev == 0; f.whiteout {
		return f, nil
	}
	if f.Type() == unix.S_IFLNK {
		b := make([]byte, max(st.Size, 255)+1)
		n, err := unix.Readlinkat(dir, name, b)
		if err != nil {
			return f, &os.PathError{Op: "readlink", Path: full, Err: err}
		}
		f.Link = string(b[:n])
	}
	if err := f.readXattrs(dir, name); err != nil {
		return f, &os.PathError{Op: "read xattrs of", Path: full, Err: err}
	}
	return f, nil
}

// scanAll is scan of several names in dir, whose path is p, by several goroutines
// where that is worth it.
func scanAll(dir int, p string, names []string) ([]found, error) {
	out := make([]found, len(names))
	part := func(from, to int) (err error) {
		for i := from; i < to && err == nil; i++ {
			out[i], err = scan(dir, names[i], join(p, names[i]))
		}
		return err
	}
	workers := min(runtime.GOMAXPROCS(0), len(names)/minScan)
	if workers < 2 {
		return out, part(0, len(names))
	}
	var g errgroup.Group
	size := (len(names) + workers - 1) / workers
	for from := 0; from < len(names); from += size {
		g.Go(func() error { return part(from, min(from+size, len(names))) })
	}
	return out, g.Wait()
}

// minScan is how many names are worth a goroutine.
const minScan = 64

func (f *found) readXattrs(dir int, name string) error {
	var small [256]byte
	list, err := tree.Sized(small[:], func(b []byte) (int, error) { return listXattrs(dir, name, b) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	for k := range strings.SplitSeq(string(list), "\x00") {
		if k == "" {
			continue
		}
		switch strings.TrimPrefix(strings.TrimPrefix(k, "trusted."), "user.") {
		case "overlay.redirect", "overlay.metacopy":
			if f.IsDir() || f.Type() == unix.S_IFREG {
				return fmt.Errorf("%s: the layer was written with an overlay mount that had redirect_dir or metacopy on", k)
			}
		}
		if k != tree.OpaqueXattr && !Portable(k) {
			continue
		}
		var small [256]byte
		v, err := tree.Sized(small[:], func(b []byte) (int, error) { return unix.Lgetxattr(through(dir, name), k, b) })
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue
		}
		if err != nil {
			return err
		}
		if k == tree.OpaqueXattr {
			// "x" says only that files with whiteout xattrs may be there.
			f.opaque = string(v) == "y"
			continue
		}
		if f.Xattrs == nil {
			f.Xattrs = map[string]string{}
		}
		f.Xattrs[k] = string(v)
	}
	return nil
}

// listXattrs is listxattrat, or what does the same.
func listXattrs(dir int, name string, buf []byte) (int, error) {
	if !noListAt.Load() {
		p, err := unix.BytePtrFromString(name)
		if err != nil {
			return 0, err
		}
		n, _, e := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(p)), unix.AT_SYMLINK_NOFOLLOW,
			uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0)
		switch e {
		case 0:
			return int(n), nil
		case unix.ENOSYS, unix.EPERM: // Linux before 6.13; and filters of system calls that do not know it
			noListAt.Store(true)
		default:
			return 0, e
		}
	}
	return unix.Llistxattr(through(dir, name), buf)
}

var noListAt atomic.Bool

// through is a path to name in the open directory dir, for system calls that have
// no *at form: the kernel takes three times as long.
func through(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

// Xattrs gives e, which is name in the open directory dir, its extended
// attributes that are Portable.
func Xattrs(dir int, name string, e *tree.Entry) error {
	f := found{Entry: *e}
	err := f.readXattrs(dir, name)
	e.Xattrs = f.Xattrs
	return err
}

// openDir opens the directory name in dir to be listed.
func openDir(dir int, name, full string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: full, Err: err}
	}
	return os.NewFile(uintptr(fd), full), nil
}

// listDir is the sorted names in d. With markers, files named ".wh.x" are left
// out: gone are the names that they stand for, and hides says that one of them
// makes the directory opaque.
func listDir(d *os.File, markers bool) (names, gone []string, hides bool, err error) {
	names, err = d.Readdirnames(-1)
	if err != nil {
		return nil, nil, false, err
	}
	if markers {
		names = slices.DeleteFunc(names, func(n string) bool {
			if n == opaque {
				hides = true
				return true
			}
			name, ok := strings.CutPrefix(n, whiteout)
			if ok {
				gone = append(gone, name)
			}
			return ok
		})
		// What is there replaces what is gone.
		gone = slices.DeleteFunc(gone, func(n string) bool { return slices.Contains(names, n) })
		slices.Sort(gone)
	}
	slices.Sort(names)
	return names, gone, hides, nil
}

func join(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}
