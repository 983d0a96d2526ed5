package layer

import (
	"archive/tar"
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// capability has what capabilities(7) calls file capabilities, without which a
// program would not work.
const capability = "security.capability"

// header is the entry that h describes, without its path.
func (a *applier) header(h *tar.Header) (tree.Entry, error) {
	e := tree.Entry{UID: h.Uid, GID: h.Gid, ModTime: h.ModTime, Nlink: 1}
	// -1 would leave the owner as it is.
	if h.Uid < 0 || h.Gid < 0 || h.Uid >= math.MaxUint32 || h.Gid >= math.MaxUint32 {
		return e, fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	// What the nanoseconds of an int64 cannot count, filesystems cannot either.
	if s := h.ModTime.Unix(); s < 0 || s > math.MaxInt64/int64(time.Second) {
		e.ModTime = time.Unix(0, 0)
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Mode, e.Size = unix.S_IFREG, h.Size
	case tar.TypeLink:
		e.Mode = unix.S_IFREG
	case tar.TypeDir:
		e.Mode = unix.S_IFDIR
	case tar.TypeSymlink:
		e.Mode, e.Link = unix.S_IFLNK, h.Linkname
	case tar.TypeChar:
		e.Mode = unix.S_IFCHR
	case tar.TypeBlock:
		e.Mode = unix.S_IFBLK
	case tar.TypeFifo:
		e.Mode = unix.S_IFIFO
	default:
		return e, fmt.Errorf("entries of type %q are not known", h.Typeflag)
	}
	if t := e.Type(); t == unix.S_IFCHR || t == unix.S_IFBLK {
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor >= 1<<12 || h.Devminor >= 1<<20 {
			return e, fmt.Errorf("device %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	if e.Mode |= uint32(h.Mode & 0o7777); e.Type() == unix.S_IFLNK {
		e.Mode = unix.S_IFLNK | 0o777
	}
	if h.Typeflag != tar.TypeLink { // it depends on what is linked to
		a.xattrs(h, &e)
	}
	return e, nil
}

// xattrs gives e those extended attributes of h that it can have.
func (a *applier) xattrs(h *tar.Header, e *tree.Entry) {
	for k, v := range h.PAXRecords {
		k, ok := strings.CutPrefix(k, schilyXattr)
		if !ok {
			continue
		}
		// xattr(7): only files and directories have those of users, and file
		// capabilities mean nothing elsewhere.
		plain := e.Type() == unix.S_IFREG || e.IsDir()
		if !Portable(k) || !plain && !strings.HasPrefix(k, "trusted.") {
			notice(a.o.Notice, "%s: the extended attribute %s is left out", h.Name, k)
			continue
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[k] = v
	}
}
