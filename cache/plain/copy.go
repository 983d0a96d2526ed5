package plain

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
)

// copyTree copies the tree in from, with all its metadata and hard links, to
// the new directory to, and returns what tells whether a file of the copy has
// been changed since.
func (d *Driver) copyTree(ctx context.Context, from, to string) ([]tree.Change, error) {
	var dirs, files []tree.Change
	for c, err := range layer.Diff(ctx, from, nil, layer.DiffOptions{}) {
		if err != nil {
			return nil, err
		}
		p := filepath.Join(to, c.Path)
		switch {
		case c.Removed: // a device 0:0: overlayfs would not have it made
			continue
		case c.IsDir():
			dirs = append(dirs, c)
			err = os.Mkdir(p, 0o700)
		case c.HardLink != "":
			err = unix.Linkat(unix.AT_FDCWD, filepath.Join(to, c.HardLink), unix.AT_FDCWD, p, 0)
		default:
			err = d.copyEntry(ctx, filepath.Join(from, c.Path), p, &c.Entry)
		}
		if err != nil {
			return nil, fmt.Errorf("copy %s: %w", c.Path, err)
		}
		if c.Type() == unix.S_IFREG && c.Size > 0 {
			files = append(files, c)
		}
	}
	for i := range dirs {
		if err := setMeta(filepath.Join(to, dirs[i].Path), &dirs[i].Entry); err != nil {
			return nil, err
		}
	}
	return stamp(files, to)
}

// tick is more than the granularity of change times: a jiffy, at most 10 ms.
const tick = 20 * time.Millisecond

// stamp notes inode and change time of files. Those that changed within the
// last tick are left out: what is written to them now might not show.
func stamp(files []tree.Change, root string) ([]tree.Change, error) {
	before := time.Now().Add(-tick)
	out := files[:0]
	for _, f := range files {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, f.Path), &st); err != nil {
			return nil, &os.PathError{Op: "lstat", Path: f.Path, Err: err}
		}
		if at := time.Unix(st.Ctim.Sec, st.Ctim.Nsec); at.Before(before) {
			out = append(out, tree.Change{Entry: tree.Entry{Path: f.Path, Ino: st.Ino, ModTime: at}})
		}
	}
	return out, nil
}

func writeStamps(path string, stamps []tree.Change) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	if err := layer.WriteEntries(w, stamps); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// readStamps is layer.DiffOptions.Unchanged by the stamps in the file path; nil
// if they cannot be read, which costs time and nothing else.
func readStamps(path string) func(string, uint64, unix.Timespec) bool {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	type stamp struct {
		ino   uint64
		ctime int64
	}
	known := map[string]stamp{}
	for c, err := range layer.ReadEntries(f) {
		if err != nil {
			return nil
		}
		known[c.Path] = stamp{c.Ino, c.ModTime.UnixNano()}
	}
	return func(path string, ino uint64, ctime unix.Timespec) bool {
		return known[path] == stamp{ino, ctime.Nano()}
	}
}

// copyEntry makes to a copy of from, which is no directory and whose entry is e.
func (d *Driver) copyEntry(ctx context.Context, from, to string, e *tree.Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var err error
	switch e.Type() {
	case unix.S_IFREG:
		err = d.copyFile(from, to, e)
	case unix.S_IFLNK:
		err = os.Symlink(e.Link, to)
	default:
		err = unix.Mknod(to, e.Mode, int(unix.Mkdev(e.Major, e.Minor)))
	}
	if err != nil {
		return err
	}
	return setMeta(to, e)
}

func (d *Driver) copyFile(from, to string, e *tree.Entry) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if e.Size > 0 {
		if err := d.copyContent(in, out, e.Size); err != nil {
			return err
		}
	}
	return out.Close()
}

// copyContent copies by reflink; else the data between the holes, which the
// kernel copies if it can.
func (d *Driver) copyContent(in, out *os.File, size int64) error {
	if !d.noClone.Load() {
		if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
			return nil
		}
		// Whatever was wrong, asking for each file again costs more than it
		// could bring.
		d.noClone.Store(true)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(in.Fd()), &st); err != nil {
		return err
	}
	if st.Blocks*512 >= size {
		_, err := out.ReadFrom(in)
		return err
	}
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole to the end
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := in.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, hole-data); err != nil {
			return err
		}
		at = hole
	}
	return out.Truncate(size)
}

// setMeta gives p the metadata of e: owner first, which takes setuid bits and
// file capabilities away.
func setMeta(p string, e *tree.Entry) error {
	if err := unix.Lchown(p, e.UID, e.GID); err != nil {
		return &os.PathError{Op: "chown", Path: p, Err: err}
	}
	if e.Type() != unix.S_IFLNK {
		if err := unix.Chmod(p, e.Perm()); err != nil {
			return &os.PathError{Op: "chmod", Path: p, Err: err}
		}
	}
	for k, v := range e.Xattrs {
		if err := unix.Lsetxattr(p, k, []byte(v), 0); err != nil {
			return &os.PathError{Op: "set xattr " + k + " of", Path: p, Err: err}
		}
	}
	at, err := unix.TimeToTimespec(e.ModTime)
	if err == nil {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, at}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return &os.PathError{Op: "set times of", Path: p, Err: err}
	}
	return nil
}
