package sandbox

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/861fb494/build/executor/sandbox/child"
	"github.com/861fb494/build/internal/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// runtimeSpec is s as the configuration of an OCI runtime. The mounts after are
// found, by number, in dir; all others of s are in the root already.
func runtimeSpec(s Spec, dir string, after []oci.Mount) (*specs.Spec, error) {
	c := newConfig(s)
	caps := capList(c.Caps)
	set := &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	if c.Ambient {
		set.Inheritable, set.Ambient = caps, caps
	}
	spec := &specs.Spec{
		Version:  "1.0.2",
		Hostname: s.Hostname,
		Root:     &specs.Root{Path: "rootfs", Readonly: s.ReadOnly},
		Process: &specs.Process{
			Terminal: s.Terminal, Args: s.Args, Env: s.Env, Cwd: c.Dir, Capabilities: set, NoNewPrivileges: c.NoNewPrivs,
			User: specs.User{UID: s.User.UID, GID: s.User.GID, AdditionalGids: s.User.Groups},
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join("/", s.CgroupParent, s.ID),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
			Resources: resourcesOf(s),
		},
	}
	for _, r := range s.Rlimits {
		spec.Process.Rlimits = append(spec.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(r.Name), Soft: r.Soft, Hard: r.Hard})
	}
	if s.NetNS != Host {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: s.NetNS})
	}
	for _, m := range c.StandardMounts() {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: m.Target, Type: m.Type, Source: m.Source, Options: m.Options})
	}
	mode := "ro"
	if s.Privileged {
		mode = "rw"
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", mode}})
	for i, m := range after {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: m.Target, Type: "bind", Source: filepath.Join(dir, strconv.Itoa(i)), Options: append([]string{"rbind"}, attributeOptions(m.Options)...)})
	}
	if s.Privileged {
		var err error
		spec.Linux.Devices, err = hostDevices()
		return spec, err
	}
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = child.MaskedPaths, child.ReadOnlyPaths
	var err error
	spec.Linux.Seccomp, err = profile(c.Caps)
	return spec, err
}

// attributeOptions are those options that a bind mount has to repeat.
func attributeOptions(options []string) []string {
	var out []string
	for _, o := range options {
		switch o {
		case "ro", "nosuid", "nodev", "noexec":
			out = append(out, o)
		}
	}
	return out
}

// resourcesOf holds limits, and the devices that may be used: without the rule
// against all, a runtime allows all.
func resourcesOf(s Spec) *specs.LinuxResources {
	r := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: s.Privileged, Access: "rwm"}}}
	for _, d := range s.rules() {
		kind, major, minor := "c", int64(d.Major), int64(d.Minor)
		if d.Block {
			kind = "b"
		}
		r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: d.Access})
	}
	if m := s.Resources.Memory; m > 0 {
		swap := 2 * m // memory and as much swap, as Docker has it
		r.Memory = &specs.LinuxMemory{Limit: &m, Swap: &swap}
	}
	if s.Resources.CPUs > 0 {
		quota, period := int64(s.Resources.CPUs*100000), uint64(100000)
		quota = max(quota, 1000)
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	if n := s.Resources.PIDs; n > 0 {
		r.Pids = &specs.LinuxPids{Limit: &n}
	}
	return r
}

func hostDevices() ([]specs.LinuxDevice, error) {
	devices, err := child.HostDevices()
	var out []specs.LinuxDevice
	for _, d := range devices {
		kind := "c"
		if d.Mode&unix.S_IFMT == unix.S_IFBLK {
			kind = "b"
		}
		mode := os.FileMode(d.Mode & 0o7777)
		out = append(out, specs.LinuxDevice{
			Path: "/dev/" + d.Name, Type: kind, Major: int64(d.Major), Minor: int64(d.Minor), FileMode: &mode, UID: &d.UID, GID: &d.GID,
		})
	}
	return out, err
}
