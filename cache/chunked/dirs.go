package chunked

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// dirs opens directories below a root, following no symbolic link, and keeps the
// one used last open. It is not safe for concurrent use.
type dirs struct {
	root *os.File // not closed
	path string   // of sub
	sub  int      // 0: none
}

// at is the open directory that the path p is in, valid until the next call, and
// p's name there.
func (d *dirs) at(p string) (dir int, name string, err error) {
	i := strings.LastIndexByte(p, '/')
	parent, name := p[:i], p[i+1:]
	if parent == "" {
		return int(d.root.Fd()), name, nil
	}
	if d.sub > 0 && d.path == parent {
		return d.sub, name, nil
	}
	fd, err := openDir(int(d.root.Fd()), parent[1:])
	if err != nil {
		return -1, "", &os.PathError{Op: "open", Path: parent, Err: err}
	}
	d.close()
	d.sub, d.path = fd, parent
	return fd, name, nil
}

func (d *dirs) close() {
	if d.sub > 0 {
		unix.Close(d.sub)
	}
	d.sub = 0
}

// openDir opens the directory p, relative to root. A path may be longer than a
// system call takes.
func openDir(root int, p string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd := root
	for p != "" {
		part := p
		if len(p) > 4000 {
			part = p[:strings.LastIndexByte(p[:4000], '/')] // names have 255 bytes at most
		}
		p = strings.TrimPrefix(p[len(part):], "/")
		next, err := unix.Openat2(fd, part, &how)
		if fd != root {
			unix.Close(fd)
		}
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}
