package child

import (
	"slices"

	"golang.org/x/sys/unix"
)

// DefaultShmSize is the size of /dev/shm in bytes where none is asked for:
// Docker's.
const DefaultShmSize = 64 << 20

// made is a filesystem that was mounted before it was known whether it is
// needed, attached nowhere.
type made struct {
	Mount
	fd int
}

var (
	// covering is mounted on directories that a process must not see.
	covering = Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "nosuid", "nodev", "noexec", "mode=755", "size=0k", "nr_inodes=1"}}
	// inMemory has the files that are in memory.
	inMemory = Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=0700"}}
)

// makeAhead mounts the filesystems that nearly every sandbox has, while it is not
// known yet what it is for. They belong to the namespaces that this
// thread is in already: those of System V IPC. What cannot be
// made is left out: who needs it then mounts it, and hears why it fails.
func makeAhead() (ahead []made) {
	usual := Config{ShmSize: DefaultShmSize}
	for _, m := range append(usual.StandardMounts(), covering, inMemory) {
		if isBind(m.Options) || ofInside(m) {
			continue
		}
		fd, err := filesystemTree(m)
		if err != nil {
			continue
		}
		if m.Target == devDir && fillDev(fd, mknod) != nil {
			unix.Close(fd)
			continue
		}
		ahead = append(ahead, made{m, fd})
	}
	return ahead
}

// filesystem is filesystemTree, or what makeAhead has made.
func (r *rootfs) filesystem(m Mount) (int, error) {
	i := slices.IndexFunc(r.ahead, func(a made) bool {
		return a.Type == m.Type && a.Source == m.Source && a.Target == m.Target && slices.Equal(a.Options, m.Options)
	})
	if i < 0 {
		return filesystemTree(m)
	}
	fd := r.ahead[i].fd
	r.ahead = slices.Delete(r.ahead, i, i+1)
	if m.Target == devDir {
		r.devFilled = true
	}
	return fd, nil
}

// closeAhead lets go of what was made and is not needed.
func (r *rootfs) closeAhead() {
	for _, a := range r.ahead {
		unix.Close(a.fd)
	}
	r.ahead = nil
}
