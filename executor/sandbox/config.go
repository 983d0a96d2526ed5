package sandbox

import (
	"slices"

	"github.com/861fb494/build/executor/sandbox/child"
	"github.com/861fb494/build/internal/oci"
	"golang.org/x/sys/unix"
)

// newConfig is s as told to the child, apart from the cgroup and the filter.
func newConfig(s Spec) *child.Config {
	c := &child.Config{
		Args: s.Args, Env: s.Env, Dir: s.Dir, User: child.User(s.User), Terminal: s.Terminal,
		Root: child.Mount(s.Root), Upper: upperOf(s.Root), ReadOnly: s.ReadOnly, Mounts: childMounts(s.Mounts), Hostname: s.Hostname,
		NetNS: s.NetNS, Privileged: s.Privileged, ShmSize: s.ShmSize,
		Caps: defaultCaps, NoNewPrivs: !s.NewPrivileges,
	}
	for _, r := range s.Rlimits {
		n, _ := rlimitNumber(r.Name)
		c.Rlimits = append(c.Rlimits, child.Rlimit{Resource: n, Name: r.Name, Soft: r.Soft, Hard: r.Hard})
	}
	if c.Dir == "" {
		c.Dir = "/"
	}
	if c.ShmSize <= 0 {
		c.ShmSize = child.DefaultShmSize
	}
	switch s.NetNS {
	case "":
		c.NewNetNS = true
	case Host:
		c.NetNS = ""
	}
	if s.Privileged {
		c.Caps, c.Ambient, c.NoNewPrivs = child.AllCaps(), true, false
	}
	return c
}

func childMounts(mounts []oci.Mount) []child.Mount {
	var out []child.Mount
	for _, m := range mounts {
		out = append(out, child.Mount(m))
	}
	return out
}

// noDev makes device nodes of the root and of mounts unusable where no cgroup
// limits devices: a process that may mknod(2) could otherwise make itself the
// host's disk.
func noDev(c *child.Config) {
	c.NoDev = true
	for i, m := range c.Mounts {
		if m.Type == child.DeviceType {
			continue // one that the sandbox is to have
		}
		c.Mounts[i].Options = slices.Concat([]string{"nodev"}, m.Options)
	}
}

// rlimitNumber gives the resource of setrlimit(2) by its name.
func rlimitNumber(name string) (int, bool) {
	n, ok := map[string]int{
		"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
		"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
		"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
		"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
		"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
	}[name]
	return n, ok
}
