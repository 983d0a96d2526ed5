package child

import (
	"fmt"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// NetNSFile is where in a bundle the network namespace to be joined is bound.
const NetNSFile = "netns"

// MountForRuntime mounts the root filesystem in the bundle, and in it, or
// beside it, what it is to have mounted.
func (c *Config) MountForRuntime() ([]MadeDir, error) {
	bundle := c.Run.Bundle
	r, err := c.mountRoot(path.Join(bundle, "rootfs"))
	if err != nil {
		return nil, err
	}
	if c.NetNS != "" {
		// The path may be one in /proc that is not there afterwards.
		fd, err := bindTree(Mount{Source: c.NetNS})
		if err != nil {
			return nil, fmt.Errorf("network namespace: %w", err)
		}
		if err := attach(fd, unix.AT_FDCWD, path.Join(bundle, NetNSFile)); err != nil {
			return nil, fmt.Errorf("network namespace: %w", err)
		}
		unix.Close(fd)
	}
	// The runtime needs a /proc that shows this PID namespace.
	fd, err := filesystemTree(Mount{Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}})
	if err != nil {
		return nil, err
	}
	if err := attach(fd, unix.AT_FDCWD, "/proc"); err != nil {
		return nil, err
	}
	unix.Close(fd)
	// What the runtime would make itself, so that it is known what was made.
	for _, m := range []string{"/proc", "/dev", "/sys"} {
		at, err := r.mountPoint(m, true)
		if err != nil {
			return nil, err
		}
		unix.Close(at)
	}
	for _, m := range c.Mounts {
		if err := r.mount(m); err != nil {
			return nil, fmt.Errorf("mount %w", err)
		}
	}
	beside := &rootfs{base: path.Join(bundle, "mounts"), memory: -1}
	defer beside.closeMemory()
	if beside.fd, err = unix.Open(beside.base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	defer unix.Close(beside.fd)
	for i, m := range c.Run.Mounts {
		m.Target = "/" + strconv.Itoa(i)
		if err := beside.mount(m); err != nil {
			return nil, fmt.Errorf("mount %s: %w", c.Run.Mounts[i].Target, err)
		}
	}
	r.noteMade()
	return r.made(), nil
}
