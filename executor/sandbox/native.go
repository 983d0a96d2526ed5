package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/861fb494/build/executor/sandbox/cgroup"
	"github.com/861fb494/build/executor/sandbox/child"
	"golang.org/x/sys/unix"
)

// NativeOptions are the options of NewNative. The zero value works.
type NativeOptions struct {
	// CgroupRoot is where the cgroup hierarchies are mounted; "" is
	// /sys/fs/cgroup.
	CgroupRoot string
}

// Native runs processes in namespaces of the kernel's, with no runtime but this
// program: it executes itself again as the first process of the new namespaces,
// which makes all mounts there and then executes what was asked for. So nothing
// is ever mounted where this process is, and when it is killed the kernel takes
// down what it had set up.
//
// It needs root and Linux 5.6 (openat2(2)). main must call Reexec.
type Native struct {
	cgroups *cgroup.Tree

	mu     sync.Mutex
	spare  *spare // nil: none
	warmed int    // how many have been made
	closed bool
	ending sync.WaitGroup // spare processes that are being ended
}

// NewNative returns the sandbox of our own.
func NewNative(o NativeOptions) *Native {
	if o.CgroupRoot == "" {
		o.CgroupRoot = cgroup.DefaultRoot
	}
	return &Native{cgroups: cgroup.Open(o.CgroupRoot)}
}

// Start implements Sandbox. That the command cannot be executed is an
// *ExecError.
func (n *Native) Start(ctx context.Context, s Spec) (Process, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	if s.ID == "" {
		s.ID = newID()
	}
	if s.CgroupParent == "" {
		s.CgroupParent = DefaultCgroupParent
	}
	if sp := n.take(s); sp != nil {
		p, err := n.run(ctx, s, sp.started, sp.group, true)
		if !errors.Is(err, errEarly) || ctx.Err() != nil {
			return p, err
		}
		// It had been killed by somebody: that is no reason not to start another.
	}
	// Without limits to hold, a machine that lets us make no cgroup is no error:
	// the PID namespace ends all processes too.
	group := n.cgroups.Unlimited(s.CgroupParent, s.ID)
	name, flags := child.Name, uintptr(0)
	if s.Init {
		name = child.SupervisorName
	}
	if s.NetNS == "" {
		flags = unix.CLONE_NEWNET
	}
	first, err := startFirst(group, name, flags)
	if err != nil {
		return nil, errors.Join(err, group.Remove())
	}
	return n.run(ctx, s, first, group, false)
}

// startFirst starts the first process of new namespaces: those that every sandbox
// has, and those of flags.
func startFirst(group *cgroup.Group, name string, flags uintptr) (*started, error) {
	attr := syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | flags,
		Pdeathsig:  unix.SIGKILL,
	}
	fd, closeGroup, err := group.FD()
	if err != nil {
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	defer closeGroup()
	if fd >= 0 {
		attr.UseCgroupFD, attr.CgroupFD = true, fd
	}
	return startChild(name, &attr)
}

// run has first, which is in group, run s. spare says that it was started before
// it was known what for. After an error both are gone.
func (n *Native) run(ctx context.Context, s Spec, first *started, group *cgroup.Group, spare bool) (Process, error) {
	limits := cgroup.Limits{Memory: s.Resources.Memory, CPUs: s.Resources.CPUs, PIDs: s.Resources.PIDs, Devices: !s.Privileged, Allow: s.rules()}
	if err := n.cgroups.Limit(group, limits); err != nil {
		first.end()
		return nil, errors.Join(err, group.Remove())
	}
	c := newConfig(s.withDevices())
	if err := group.DevicesErr(); !s.Privileged && err != nil {
		if err := s.needsGroup(err); err != nil {
			first.end()
			return nil, errors.Join(err, group.Remove())
		}
		noDev(c)
	}
	c.Cgroups, c.CgroupV1, c.CgroupV2 = group.Join(), group.Dirs(), group.Unified()
	c.MakeNetNS = spare && c.NewNetNS
	p, err := first.launch(ctx, s, c)
	if err != nil {
		return nil, errors.Join(err, group.Remove())
	}
	p.spec, p.group = s, group
	return p, nil
}

// DefaultCgroupParent is the cgroup that those of steps are made in.
const DefaultCgroupParent = "build"

// Sweep removes the cgroups under parent ("" for the default one) that killed
// processes left, and kills what still runs in them. alive says whether the
// owner of an ID that was a Spec's still lives.
func Sweep(parent string, alive func(id string) bool) error {
	if parent == "" {
		parent = DefaultCgroupParent
	}
	return cgroup.Open(cgroup.DefaultRoot).Sweep(parent, alive)
}

func newID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return "x" + hex.EncodeToString(b[:])
}

// check finds what no sandbox can run, before anything is started.
func (s *Spec) check() error {
	switch {
	case len(s.Args) == 0 || s.Args[0] == "":
		return errors.New("sandbox: no command to run")
	case strings.ContainsRune(s.ID, '/') || s.ID == "." || s.ID == "..":
		return fmt.Errorf("sandbox: id %q is not a file name", s.ID)
	case s.Dir != "" && !filepath.IsAbs(s.Dir):
		return fmt.Errorf("sandbox: working directory %q is not absolute", s.Dir)
	case s.Root.Type == "":
		return errors.New("sandbox: no root filesystem")
	}
	for _, list := range [][]string{s.Args, s.Env} {
		for _, v := range list {
			if strings.IndexByte(v, 0) >= 0 {
				return fmt.Errorf("sandbox: NUL byte in argument or variable %q", v)
			}
		}
	}
	for _, m := range s.Mounts {
		if !filepath.IsAbs(m.Target) {
			return fmt.Errorf("sandbox: mount target %q is not absolute", m.Target)
		}
	}
	for _, r := range s.Rlimits {
		if _, ok := rlimitNumber(r.Name); !ok {
			return fmt.Errorf("sandbox: unknown resource limit %q", r.Name)
		}
		if r.Soft > r.Hard {
			return fmt.Errorf("sandbox: resource limit %s: soft limit %d is above hard limit %d", r.Name, r.Soft, r.Hard)
		}
	}
	return nil
}
