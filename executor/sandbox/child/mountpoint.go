package child

import (
	"errors"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// resolveFlags keep lookups inside the root whatever links the image has:
// absolute links and ".." count from the root, and those of /proc lead nowhere.
const resolveFlags = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// open opens path in the root with O_PATH.
func (r *rootfs) open(path string) (int, error) { return openIn(r.fd, path) }

// openIn opens path in the directory root, as if that were the root, with O_PATH.
func openIn(root int, path string) (int, error) {
	for {
		fd, err := unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveFlags})
		// EAGAIN: something was renamed meanwhile (openat2(2)).
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// maxLinks is how many dangling links are followed to make a directory, as many
// as the kernel follows.
const maxLinks = 40

// directory opens the directory p in the root, and makes it, and those above
// it, if it does not exist.
func (r *rootfs) directory(p string) (int, error) { return r.ensure(p, true, false, maxLinks) }

// mountPoint opens what is to be mounted on. Where it does not exist, an empty
// directory or file is made, of which a record is kept.
func (r *rootfs) mountPoint(p string, dir bool) (int, error) { return r.ensure(p, dir, true, maxLinks) }

func (r *rootfs) ensure(p string, dir, record bool, links int) (int, error) {
	p = path.Join("/", p)
	fd, err := r.open(p)
	if err == nil || !errors.Is(err, unix.ENOENT) || p == "/" {
		if err != nil {
			err = &os.PathError{Op: "open", Path: p, Err: err}
		}
		return fd, err
	}
	if links == 0 {
		return -1, &os.PathError{Op: "make", Path: p, Err: unix.ELOOP}
	}
	above, base := path.Split(p)
	parent, err := r.ensure(above, true, record, links-1)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if r.isInside(parent) {
		return -1, ErrInside
	}
	// What the lookup did not find may be there after all, as a link that
	// leads to nothing.
	if to, err := readlinkat(parent, base); err == nil {
		if !path.IsAbs(to) {
			to = path.Join(r.pathOf(parent), to)
		}
		return r.ensure(to, dir, record, links-1)
	}
	done := func() {}
	if record {
		done = r.recordMade(parent, base, dir)
	}
	if dir {
		err = unix.Mkdirat(parent, base, 0o755)
	} else {
		var f int
		if f, err = unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o644); err == nil {
			unix.Close(f)
		}
	}
	// Somebody else may use the same directory and have been faster.
	if err != nil && err != unix.EEXIST {
		return -1, &os.PathError{Op: "make", Path: p, Err: err}
	}
	if err == nil {
		done()
	}
	fd, err = unix.Openat2(parent, base, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return fd, nil
}

func readlinkat(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// pathOf returns the path in the root of an open file.
func (r *rootfs) pathOf(fd int) string {
	p, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil || !path.IsAbs(p) {
		return "/"
	}
	return path.Join("/", strings.TrimPrefix(p, r.base))
}

// MadeDir is a directory of the root in which mount points were made, and how
// it was, so that the parent process can undo that in the upper directory.
type MadeDir struct {
	Path    string   // in the root, without links
	Dirs    []string `json:",omitempty"` // names of the directories made in it
	Files   []string `json:",omitempty"` // names of the files made in it
	Mtime   int64    // nanoseconds, before
	Copied  bool     // making something there copied the directory up
	After   DirState // afterwards
	dirName string   // host path, in the upper directory
}

// DirState is what tells that a directory has been touched.
type DirState struct {
	Mode, UID, GID uint32
	Mtime, Ctime   int64
}

// StateOf returns the state of a directory.
func StateOf(path string) (DirState, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return DirState{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return DirState{}, unix.ENOTDIR
	}
	return DirState{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano()}, nil
}

// recordMade is called before name is made in the directory parent, and what it
// returns afterwards. Mount points made in other mounts than the root's are not
// recorded: those mounts are either thrown away or the caller's to look after.
func (r *rootfs) recordMade(parent int, name string, dir bool) func() {
	if r.upper == "" || !r.sameMount(parent) {
		return func() {}
	}
	d := r.madeDir(r.pathOf(parent), parent)
	return func() {
		if dir {
			d.Dirs = append(d.Dirs, name)
		} else {
			d.Files = append(d.Files, name)
		}
	}
}

func (r *rootfs) sameMount(fd int) bool {
	var a, b unix.Statx_t
	const flags = unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC
	if unix.Statx(fd, "", flags, unix.STATX_MNT_ID, &a) != nil || unix.Statx(r.fd, "", flags, unix.STATX_MNT_ID, &b) != nil {
		return false
	}
	return a.Mask&unix.STATX_MNT_ID != 0 && a.Mnt_id == b.Mnt_id
}

// MadeDir returns the record of a directory, made if it is new, with those of
// the directories above that are going to be copied up with it.
func (r *rootfs) madeDir(p string, fd int) *MadeDir {
	for _, d := range r.dirs {
		if d.Path == p {
			return d
		}
	}
	d := &MadeDir{Path: p, dirName: path.Join(r.upper, p)}
	var st unix.Stat_t
	if fd >= 0 && unix.Fstat(fd, &st) == nil {
		d.Mtime = st.Mtim.Nano()
	}
	if _, err := os.Lstat(d.dirName); errors.Is(err, os.ErrNotExist) {
		d.Copied = true
		r.madeDir(path.Dir(p), -1)
	}
	r.dirs = append(r.dirs, d)
	return d
}

// made returns the records, with the directories as they are now.
func (r *rootfs) made() []MadeDir {
	var out []MadeDir
	for _, d := range r.dirs {
		out = append(out, *d)
	}
	return out
}

// noteMade takes down how the directories are now. It is called while the host's
// paths can be reached.
func (r *rootfs) noteMade() {
	for _, d := range r.dirs {
		d.After, _ = StateOf(d.dirName)
	}
}
