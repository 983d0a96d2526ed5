package tree

import (
	"path"

	"golang.org/x/sys/unix"
)

// CreateNew is Create for where nothing is, in fewer system calls. It returns a
// bare file descriptor, for writing, which the caller closes; perm is what
// umask(2) leaves of it. Where something is, or where lower layers have the
// parent directory too and so might have it, it is an fs.ErrExist: use Create.
func (t *Tree) CreateNew(p string, perm uint32) (fd int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fd, err = t.createNew(p, perm)
	return fd, wrap("create", p, err)
}

func (t *Tree) createNew(p string, perm uint32) (int, error) {
	if !t.upper {
		return -1, unix.EROFS
	}
	up := path.Dir(p)
	ls, err := t.layersOf(up)
	if err != nil {
		return -1, err
	}
	if len(ls) > 1 || ls[0] != 0 || p == "/" {
		return -1, unix.EEXIST
	}
	if err := t.touch(up); err != nil {
		return -1, err
	}
	dir, name, err := t.parent(0, p)
	if err != nil {
		return -1, err
	}
	return unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
}
