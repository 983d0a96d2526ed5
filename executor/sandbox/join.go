package sandbox

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/861fb494/build/executor/sandbox/child"
	"golang.org/x/sys/unix"
)

// Exec implements Process. Its terminal is a new one in the same /dev/pts. What
// the further process leaves in the background goes on until the sandbox's first
// process ends.
func (p *process) Exec(ctx context.Context, s Spec) (Process, error) {
	if p.group == nil {
		return nil, errors.New("exec: not in a further process")
	}
	s.Root = p.spec.Root
	if err := s.check(); err != nil {
		return nil, err
	}
	c := newConfig(s)
	c.Target = p.Pid()
	c.Cgroups = p.group.Join()
	attr := syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
	fd, closeGroup, err := p.group.FD()
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	defer closeGroup()
	if fd >= 0 {
		attr.UseCgroupFD, attr.CgroupFD = true, fd
	}
	q, err := launch(ctx, s, c, child.Name, &attr)
	if err != nil {
		return nil, err
	}
	q.spec = s
	return q, nil
}
