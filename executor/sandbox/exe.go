package sandbox

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// sealedExe returns a descriptor by which this program can be executed and never
// written to. A command in a sandbox can get at the file that its init was
// executed from ("#!/proc/self/exe", /proc/1/exe); if that were the installed
// program, root in a sandbox could replace it for all of the host
// (CVE-2019-5736). It stays open.
var sealedExe = sync.OnceValues(func() (int, error) {
	fd, err := readOnlyMount()
	if err != nil {
		return sealedCopy()
	}
	return fd, nil
})

// readOnlyMount opens this program through a read-only mount that is attached
// nowhere.
func readOnlyMount() (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// sealedCopy copies this program to memory, for kernels before 5.12 and for a
// program whose file has been removed.
func sealedCopy() (int, error) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	defer exe.Close()
	fd, err := unix.MemfdCreate("build", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), "build")
	defer file.Close()
	if _, err := io.Copy(file, exe); err != nil {
		return -1, fmt.Errorf("copy this program to memory: %w", err)
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return -1, fmt.Errorf("seal copy of this program: %w", err)
	}
	// A descriptor open for writing cannot be executed.
	ro, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(file.Fd())), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open copy of this program: %w", err)
	}
	return ro, nil
}
