package interpose

import "golang.org/x/sys/unix"

// call says how a system call names its file.
type call struct {
	name  string
	dir   int  // which argument is the directory's descriptor, or -1: the current one
	path  int  // which is the path, or -1: fd is the file
	fd    int  // which is the descriptor
	write bool // the data is argument 1, its length argument 2
	reads bool // changes nothing
}

// at is a call with a directory and a path; on one with a descriptor.
func at(name string, dir, path int) call { return call{name: name, dir: dir, path: path} }
func on(name string, fd int) call        { return call{name: name, path: -1, fd: fd} }

// calls are those that are asked about. "open" is one that makes or empties a
// file; one that only reads is "look".
var calls = map[int]call{
	unix.SYS_OPENAT:          at("open", 0, 1),
	unix.SYS_OPENAT2:         at("open", 0, 1),
	unix.SYS_MKDIRAT:         at("mkdir", 0, 1),
	unix.SYS_MKNODAT:         at("mknod", 0, 1),
	unix.SYS_SYMLINKAT:       at("symlink", 1, 2),
	unix.SYS_LINKAT:          at("link", 2, 3),
	unix.SYS_RENAMEAT:        at("rename", 2, 3),
	unix.SYS_RENAMEAT2:       at("rename", 2, 3),
	unix.SYS_UNLINKAT:        at("unlink", 0, 1),
	unix.SYS_FCHMODAT:        at("chmod", 0, 1),
	unix.SYS_FCHOWNAT:        at("chown", 0, 1),
	unix.SYS_UTIMENSAT:       at("utimes", 0, 1),
	unix.SYS_LSETXATTR:       at("setxattr", -1, 0),
	unix.SYS_SETXATTR:        at("setxattr", -1, 0),
	unix.SYS_FCHMOD:          on("chmod", 0),
	unix.SYS_FCHOWN:          on("chown", 0),
	unix.SYS_FSETXATTR:       on("setxattr", 0),
	unix.SYS_FTRUNCATE:       on("truncate", 0),
	unix.SYS_FALLOCATE:       on("allocate", 0),
	unix.SYS_FSYNC:           on("sync", 0),
	unix.SYS_FDATASYNC:       on("sync", 0),
	unix.SYS_FLOCK:           on("flock", 0),
	unix.SYS_COPY_FILE_RANGE: on("copy", 2),
	unix.SYS_SENDFILE:        on("copy", 0),
	unix.SYS_WRITE:           {name: "write", path: -1, write: true},
	unix.SYS_PWRITE64:        {name: "write", path: -1, write: true},
	unix.SYS_READ:            {name: "read", path: -1, reads: true},
	unix.SYS_PREAD64:         {name: "read", path: -1, reads: true},
	unix.SYS_GETDENTS64:      {name: "list", path: -1, reads: true},
	sysStat:                  {name: "stat", dir: 0, path: 1, reads: true},
}

// O_TMPFILE has O_DIRECTORY in it.
const creates = unix.O_CREAT | unix.O_TRUNC | unix.O_TMPFILE&^unix.O_DIRECTORY
