package sandbox

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/executor/sandbox/cgroup"
	"github.com/861fb494/build/executor/sandbox/child"
	"github.com/861fb494/build/internal/oci"
)

// withDevices is s with its devices among the mounts, before all others: a node
// in the root's own /dev would have to be allowed by the filesystem that it is
// on, and one elsewhere would become part of the root.
func (s Spec) withDevices() Spec {
	var nodes []oci.Mount
	for _, d := range s.Devices {
		nodes = append(nodes, oci.Mount{Type: child.DeviceType, Target: d.Path, Options: []string{
			fmt.Sprintf("major=%d", d.Major), fmt.Sprintf("minor=%d", d.Minor),
			fmt.Sprintf("uid=%d", d.UID), fmt.Sprintf("gid=%d", d.GID), fmt.Sprintf("mode=%o", d.Mode),
		}})
	}
	s.Mounts = slices.Concat(nodes, s.Mounts)
	return s
}

// needsGroup is an error, because of err, if s has a device that its cgroup alone
// could keep it from reading or writing. (A further node of it is of no use where
// no other mount has devices: see noDev.)
func (s Spec) needsGroup(err error) error {
	for _, d := range s.rules() {
		if !strings.Contains(d.Access, "r") || !strings.Contains(d.Access, "w") {
			return fmt.Errorf("start sandbox: access to the device %d:%d cannot be limited to %q: %w", d.Major, d.Minor, d.Access, err)
		}
	}
	return nil
}

// rules are what a cgroup is told of the devices.
func (s Spec) rules() []cgroup.Device {
	var out []cgroup.Device
	for _, d := range s.Devices {
		switch d.Mode & unix.S_IFMT {
		case unix.S_IFCHR, unix.S_IFBLK:
			out = append(out, cgroup.Device{Block: d.Mode&unix.S_IFMT == unix.S_IFBLK, Major: d.Major, Minor: d.Minor, Access: d.Access})
		}
	}
	return out
}
