package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/861fb494/build/executor/network"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
)

// Exit codes of our own, as docker run has them.
const (
	CodeFailed        = 125 // the container could not be run
	CodeNotExecutable = 126
	CodeNotFound      = 127
)

// Streams connect a container to its supervisor. The zero value connects it to
// nothing but its log. A writer that fails ends the container.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	// Terminal is the user's: while the container runs it is in raw mode, and
	// the container's terminal has its size. Nil where there is none.
	Terminal *os.File
	// Signals are passed on to the container; see relay.
	Signals <-chan os.Signal
	// Started, if not nil, is called once the process has been executed.
	Started func()
}

// Supervise runs the container in this process until it has ended, and returns
// its exit code. If it did not run the code is what this program should exit
// with: CodeFailed or one of those beside it. When ctx is done the container is
// killed.
func (cs *Containers) Supervise(ctx context.Context, c *Container, s Streams) (code int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	su := &supervisor{cs: cs, c: c, cancel: cancel, ended: make(chan struct{})}
	err = su.run(ctx, s)
	if errors.Is(err, context.Canceled) && su.state.Status == Running {
		err = nil // it ran, and was killed
	}
	if err != nil {
		su.state.Error = err.Error()
		if su.state.Status != Running || su.state.ExitCode == 0 {
			su.state.ExitCode = codeOf(err)
		}
	}
	su.state.Status, su.state.Finished, su.state.Pid = Exited, cs.now(), 0
	ctx = context.WithoutCancel(ctx)
	if c.Remove {
		err = errors.Join(err, cs.discard(ctx, c.dir, c.Snapshot()))
	} else {
		err = errors.Join(err, su.save())
	}
	close(su.ended) // whoever waits now sees the last state
	su.stopControl()
	return su.state.ExitCode, err
}

// codeOf is the exit code of a container that did not run.
func codeOf(err error) int {
	var e *sandbox.ExecError
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeFailed
}

// supervisor looks after one container.
type supervisor struct {
	cs      *Containers
	c       *Container
	cancel  context.CancelFunc
	ended   chan struct{} // closed when the state is final
	control *control

	mu      sync.Mutex
	process sandbox.Process // nil until it has been started
	state   State
}

// run is the container's life. The state is filled in as far as it came.
func (su *supervisor) run(ctx context.Context, s Streams) (err error) {
	end, err := su.cs.Networks.Attach(ctx, su.c.Network.Mode, su.c.Network.Ports)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end.Close()) }()
	log, err := newLogWriter(su.c.dir, su.cs.now)
	if err != nil {
		return err
	}
	defer log.f.Close()
	// Nobody reads on, `build run x | head`: as a pipe would end the process.
	log.lost = su.cancel
	spec, err := su.spec(end)
	if err != nil {
		return err
	}
	// Wrapped: what is a file the process would get itself, and the user's
	// terminal with it.
	if s.In != nil {
		spec.Stdin = struct{ io.Reader }{s.In}
	}
	spec.Stdout = log.stream(1, s.Out)
	if !su.c.Terminal {
		spec.Stderr = log.stream(2, s.Err)
	}
	if su.control, err = su.listen(ctx); err != nil {
		return err
	}
	p, err := su.cs.Sandbox.Start(ctx, spec)
	if err != nil {
		return err
	}
	// At once: the program may ask for the size as the first thing that it does.
	restore := followTerminal(s.Terminal, p)
	defer restore()
	su.mu.Lock()
	su.process = p
	su.state = State{Status: Running, Pid: p.Pid(), Started: su.cs.now(), Ports: end.Ports}
	if end.Addr.IsValid() {
		su.state.Addr = end.Addr.String()
	}
	su.mu.Unlock()
	saved := su.save()
	done := make(chan struct{})
	var relay sync.WaitGroup
	relay.Go(func() { su.relay(s.Signals, done) })
	if s.Started != nil {
		s.Started()
	}
	err = p.Wait()
	close(done)
	relay.Wait()
	return errors.Join(su.exited(err), saved)
}

// exited notes how the process ended. An error that is not its exit is
// returned.
func (su *supervisor) exited(err error) error {
	var e *sandbox.ExitError
	switch {
	case errors.As(err, &e):
		su.state.ExitCode, su.state.OOM = e.Code, e.OOM
		return nil
	case errors.Is(err, context.Canceled):
		su.state.ExitCode = LostCode
	}
	return err
}

func (su *supervisor) save() error {
	return writeJSON(filepath.Join(su.c.dir, "state.json"), su.state)
}

// relay passes signals on until done: SIGINT and SIGTERM as the stop signal,
// with SIGKILL after the stop timeout or at the second of them, others as they
// are. A process that has ended takes none.
func (su *supervisor) relay(signals <-chan os.Signal, done <-chan struct{}) {
	var grace <-chan time.Time
	for {
		select {
		case <-done:
			return
		case <-grace:
			_ = su.process.Signal(syscall.SIGKILL)
		case sig := <-signals:
			switch {
			case sig != syscall.SIGINT && sig != syscall.SIGTERM:
				_ = su.process.Signal(sig)
			case grace != nil:
				_ = su.process.Signal(syscall.SIGKILL)
			default:
				_ = su.process.Signal(su.c.stopSignal())
				t := time.NewTimer(su.c.StopTimeout)
				defer t.Stop()
				grace = t.C
			}
		}
	}
}

// spec is the container in the sandbox's terms.
func (su *supervisor) spec(end *network.Endpoint) (sandbox.Spec, error) {
	c := &su.c.Config
	files, err := su.files(end)
	if err != nil {
		return sandbox.Spec{}, err
	}
	return sandbox.Spec{
		ID:            c.ID,
		Args:          c.Args,
		Env:           c.Env,
		Dir:           c.Dir,
		User:          c.User,
		Terminal:      c.Terminal,
		Init:          c.Init,
		NewPrivileges: true, // as docker run
		Root:          c.Root,
		ReadOnly:      c.ReadOnly,
		Mounts:        append(files, c.Mounts...),
		Hostname:      c.Network.Hostname,
		NetNS:         end.NetNS,
		Privileged:    c.Privileged,
		Resources:     c.Resources,
	}, nil
}

// files makes the files that name the container and its neighbours, and binds
// them. What the user mounts comes later and wins.
func (su *supervisor) files(end *network.Endpoint) ([]oci.Mount, error) {
	resolv, err := network.ResolvConf(su.c.Network.Mode)
	if err != nil {
		return nil, err
	}
	n := su.c.Network
	var mounts []oci.Mount
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{"resolv.conf", resolv},
		{"hostname", []byte(n.Hostname + "\n")},
		{"hosts", hosts(n, end)},
	} {
		path := filepath.Join(su.c.dir, f.name)
		if err := writeFile(path, f.content); err != nil {
			return nil, err
		}
		mounts = append(mounts, oci.Mount{Type: "bind", Source: path, Target: "/etc/" + f.name, Options: []string{"rbind"}})
	}
	return mounts, nil
}

func hosts(n NetworkOptions, end *network.Endpoint) []byte {
	extra := end.Resolve(n.Hosts)
	if n.Mode == network.Host {
		// The host's own file: its names are the container's.
		if b, err := os.ReadFile("/etc/hosts"); err == nil {
			for _, h := range extra {
				b = fmt.Appendf(b, "%s\t%s\n", h.Addr, h.Name)
			}
			return b
		}
	}
	return network.Hosts(n.Hostname, end.Addr, extra)
}
