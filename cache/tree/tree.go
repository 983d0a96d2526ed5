package tree

import "os"

// Tree is a stack of layer directories read as one.
type Tree struct{ upper string }

// New opens the tree of lowers, topmost first, under upper. upper is "" for a
// tree that is only read. Close releases its file descriptors.
func New(upper string, lowers []string) (*Tree, error) { panic("stub") }

// Close releases the tree's file descriptors.
func (t *Tree) Close() error { panic("stub") }

// Lstat is the entry at path; no symbolic link in path is followed, and a path
// through one is an fs.ErrNotExist, through a file a unix.ENOTDIR.
func (t *Tree) Lstat(path string) (Entry, error) { panic("stub") }

// Resolve follows symbolic links in all of path, or, with last false, in all
// but its last component, inside the root. Components that do not exist are
// kept as they are.
func (t *Tree) Resolve(path string, last bool) (string, error) { panic("stub") }

// ReadDir is the sorted names in the directory path.
func (t *Tree) ReadDir(path string) ([]string, error) { panic("stub") }

// Open opens the regular file path to be read.
func (t *Tree) Open(path string) (*os.File, error) { panic("stub") }

// Mkdir makes a directory; its parent exists. Like all that write, it copies
// parents up from lower layers as overlayfs would: mode, owner, xattrs and
// times. An existing path is an fs.ErrExist.
func (t *Tree) Mkdir(path string, perm uint32) error { panic("stub") }

// Create makes or replaces a regular file, empty, mode 0600, and opens it for
// writing. A directory in its place is a unix.EISDIR.
func (t *Tree) Create(path string) (*os.File, error) { panic("stub") }

// Symlink makes or replaces (not a directory) a symbolic link.
func (t *Tree) Symlink(target, path string) error { panic("stub") }

// Mknod makes or replaces (not a directory) a device, fifo or socket of the
// type and permissions of mode.
func (t *Tree) Mknod(path string, mode, major, minor uint32) error { panic("stub") }

// Link makes or replaces (not a directory) a hard link to existing, which is
// copied up if a lower layer has it.
func (t *Tree) Link(existing, path string) error { panic("stub") }

// RemoveAll removes path and what is in it. What is not there is no error.
func (t *Tree) RemoveAll(path string) error { panic("stub") }

// Clear hides what lower layers have in the directory path: it becomes opaque.
func (t *Tree) Clear(path string) error { panic("stub") }

// SetMeta sets permission bits, owner, xattrs and modification time of path
// (not followed) to those of e: owner first, since chown clears setuid bits
// and file capabilities. Xattrs that e lacks are left alone.
func (t *Tree) SetMeta(path string, e Entry) error { panic("stub") }
