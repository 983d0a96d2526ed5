package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// Descriptors that a shim is started with.
const (
	shimReport = 3 // where it writes its report
	shimLock   = 4 // the container's lock, which is its now
)

// report is what a shim tells who started it.
type report struct {
	Code  int    `json:"code"`
	Error string `json:"error,omitempty"`
}

// Detach starts a shim for a container, by calling this program again with args,
// which lead to Shim, and returns once the container runs. With an error it did
// not start, and the code is what this program should exit with. Either way c is
// closed.
func (cs *Containers) Detach(ctx context.Context, c *Container, args []string) (code int, err error) {
	defer c.Close()
	defer func() {
		if err != nil {
			err = fmt.Errorf("start container %s: %w", c.Name, err)
		}
	}()
	r, w, err := os.Pipe()
	if err != nil {
		return CodeFailed, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{w, c.lock}
	// A session of its own: neither the terminal nor its signals reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return CodeFailed, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	var rep report
	if err := json.NewDecoder(r).Decode(&rep); err != nil {
		if ctx.Err() != nil {
			return CodeFailed, context.Cause(ctx)
		}
		return CodeFailed, fmt.Errorf("its shim ended: %v", cmd.Wait())
	}
	if rep.Error != "" {
		_ = cmd.Wait() // it removes what is to be removed
		return rep.Code, errors.New(rep.Error)
	}
	return 0, cmd.Process.Release()
}

// Shim supervises the container id in a process that Detach started. Signals as
// for Streams.
func (cs *Containers) Shim(ctx context.Context, id string, signals <-chan os.Signal) error {
	pipe := os.NewFile(shimReport, "report")
	lock := os.NewFile(shimLock, "lock")
	if !validID(id) || !isPipe(pipe) || lock == nil {
		return errors.New("a shim is started by `build run --detach` only")
	}
	syscall.CloseOnExec(shimReport)
	syscall.CloseOnExec(shimLock)
	c := &Container{dir: filepath.Join(cs.Dir, id), lock: lock}
	defer c.Close()
	tell := func(r report) {
		_ = json.NewEncoder(pipe).Encode(r) // who started it may be gone
		pipe.Close()
	}
	if err := readJSON(filepath.Join(c.dir, "config.json"), &c.Config); err != nil {
		tell(report{CodeFailed, err.Error()})
		return err
	}
	started := false
	code, err := cs.Supervise(ctx, c, Streams{
		Signals: signals,
		Started: func() { started = true; tell(report{}) },
	})
	if err != nil && !started {
		tell(report{code, err.Error()})
	}
	return err
}

func isPipe(f *os.File) bool {
	if f == nil {
		return false
	}
	fi, err := f.Stat()
	return err == nil && fi.Mode()&os.ModeNamedPipe != 0
}
