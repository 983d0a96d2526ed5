// Package tree reads several layer directories as one root filesystem, without
// a mount, and writes to the topmost.
//
// The directories follow overlayfs: a character device 0:0 is a whiteout, a
// directory with the xattr overlay.opaque hides what lies below it. A single
// directory is a tree too. Paths are slash-separated, absolute and clean
// ("/", "/a/b"); symbolic links are resolved here, never by the kernel, so
// nothing outside the root can be reached whatever the layers hold.
package tree

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/oci"
)

// Entry is what a path holds.
type Entry struct {
	Path    string
	Mode    uint32 // type and permission bits as in st_mode
	UID     int
	GID     int
	Size    int64  // of a regular file
	Major   uint32 // of a device
	Minor   uint32
	ModTime time.Time
	Link    string            // target of a symbolic link, as stored
	Xattrs  map[string]string // without overlayfs's own; nil if none
	// Ino identifies the inode within one layer. Nlink counts its names, which may
	// be in others too.
	Ino   uint64
	Nlink uint64
	// Digest is of a regular file's content, blake3; empty where it has not
	// been read.
	Digest oci.Digest
}

// EntryOf is the entry at path p as st describes it: without the target of a
// link and without extended attributes.
func EntryOf(p string, st *unix.Stat_t) Entry {
	e := Entry{
		Path: p, Mode: st.Mode, UID: int(st.Uid), GID: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec),
		Ino:     st.Ino, Nlink: uint64(st.Nlink),
	}
	switch e.Type() {
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Major, e.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	return e
}

// Type is the type bits of Mode: unix.S_IFREG, unix.S_IFDIR, …
func (e *Entry) Type() uint32 { return e.Mode & unix.S_IFMT }

// IsDir reports a directory.
func (e *Entry) IsDir() bool { return e.Type() == unix.S_IFDIR }

// Perm is the permission bits with setuid, setgid and sticky.
func (e *Entry) Perm() uint32 { return e.Mode &^ unix.S_IFMT }

// Change is one entry of a layer: a path that it adds, replaces or removes.
// Changes of a layer are sorted by path, by components: "/a", "/a/b", "/a.b".
type Change struct {
	Entry
	Removed bool // the path is gone; of Entry only Path counts
	Opaque  bool // a directory that hides what lower layers have in it
	// HardLink is the path of the first entry of this layer with the same
	// inode; empty for that entry itself.
	HardLink string
}
