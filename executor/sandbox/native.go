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
	"sync/atomic"
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
// program. A thread of its own goes into new namespaces and makes all mounts there
// that do not need to be made by their first process; that one, which it starts, is
// a few hundred bytes of machine code (see package stub) that do the rest and
// execute what was asked for. Where more is wanted of the first process, such as to
// be an init or to have a terminal, or the kernel does not let us, it is this
// program, executed again, which does it all. Either way nothing is ever mounted
// where this process is, and when it is killed the kernel takes down what it had
// set up.
//
// It needs root and Linux 5.6 (openat2(2)). main must call Reexec.
type Native struct {
	cgroups *cgroup.Tree
	noStub  atomic.Bool // the kernel did not execute one

	mu     sync.Mutex
	spare  *spare // nil: none
	warmed int    // how many have been made
	closed bool
	ending sync.WaitGroup // spare places that are being given up
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
	if !s.Init && !s.Terminal && !n.noStub.Load() && stubsWork() {
		p, err := n.startPlaced(ctx, s)
		switch {
		case errors.Is(err, errNoStub):
			n.noStub.Store(true)
		case !errors.Is(err, child.ErrInside):
			return p, err
		}
	}
	return n.startAgain(ctx, s)
}

// startPlaced starts s by way of a thread in new namespaces. It returns
// child.ErrInside or errNoStub where that is not the way.
func (n *Native) startPlaced(ctx context.Context, s Spec) (Process, error) {
	pl := n.take(s)
	if pl == nil {
		var err error
		group := n.cgroups.Unlimited(s.CgroupParent, s.ID)
		if pl, err = newPlace(group, false); err != nil {
			return nil, errors.Join(err, group.Remove())
		}
	}
	c, err := n.config(s, pl.group)
	if err == nil {
		err = setFilter(c)
	}
	if err != nil {
		return nil, errors.Join(err, pl.leave(), pl.group.Remove())
	}
	c.MakeNetNS = c.NewNetNS
	p, err := pl.start(ctx, s, c)
	if err != nil {
		return nil, errors.Join(err, pl.group.Remove())
	}
	p.spec, p.group = s, pl.group
	return p, nil
}

// startAgain starts s with this program as its first process.
func (n *Native) startAgain(ctx context.Context, s Spec) (Process, error) {
	// Without limits to hold, a machine that lets us make no cgroup is no error:
	// the PID namespace ends all processes too.
	group := n.cgroups.Unlimited(s.CgroupParent, s.ID)
	c, err := n.config(s, group)
	if err != nil {
		return nil, errors.Join(err, group.Remove())
	}
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
	p, err := first.launch(ctx, s, c)
	if err != nil {
		return nil, errors.Join(err, group.Remove())
	}
	p.spec, p.group = s, group
	return p, nil
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

// config is s as told to who makes the sandbox. It sets the limits of its group.
func (n *Native) config(s Spec, group *cgroup.Group) (*child.Config, error) {
	limits := cgroup.Limits{Memory: s.Resources.Memory, CPUs: s.Resources.CPUs, PIDs: s.Resources.PIDs, Devices: !s.Privileged, Allow: s.rules()}
	if err := n.cgroups.Limit(group, limits); err != nil {
		return nil, err
	}
	c := newConfig(s.withDevices())
	if err := group.DevicesErr(); !s.Privileged && err != nil {
		if err := s.needsGroup(err); err != nil {
			return nil, err
		}
		noDev(c)
	}
	c.Cgroups, c.CgroupV1, c.CgroupV2 = group.Join(), group.Dirs(), group.Unified()
	return c, nil
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
