package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/executor/network"
)

// Status is one of the constants below.
type Status string

// A container is created, then running, then exited.
const (
	Created Status = "created"
	Running Status = "running"
	Exited  Status = "exited"
)

// State is how a container is.
type State struct {
	Status   Status         `json:"status"`
	Pid      int            `json:"pid,omitempty"` // of its process, while it runs
	Started  time.Time      `json:"started,omitzero"`
	Finished time.Time      `json:"finished,omitzero"`
	ExitCode int            `json:"exitCode"`
	OOM      bool           `json:"oom,omitempty"` // killed by its memory limit
	Error    string         `json:"error,omitempty"`
	Addr     string         `json:"addr,omitempty"` // on a bridge
	Ports    []network.Port `json:"ports,omitempty"`
	// Lost: the supervisor was killed, and with it the container; there is no
	// exit code.
	Lost bool `json:"-"`
}

// LostCode stands for the exit code of a lost container: that of SIGKILL, which
// it got when its supervisor went.
const LostCode = 128 + 9

// Info is a container as others see it.
type Info struct {
	Config
	State
}

// List returns all containers, the newest first.
func (cs *Containers) List() ([]Info, error) {
	entries, err := os.ReadDir(cs.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var infos []Info
	for _, e := range entries {
		if !validID(e.Name()) {
			continue
		}
		i, err := cs.read(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // half made, or being removed
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, i)
	}
	slices.SortFunc(infos, func(a, b Info) int { return b.Created.Compare(a.Created) })
	return infos, nil
}

func (cs *Containers) read(id string) (Info, error) {
	dir := filepath.Join(cs.Dir, id)
	var i Info
	// The lock first: a container that ends in between is then seen as it ended.
	alive := locked(filepath.Join(dir, "lock"))
	if err := readJSON(filepath.Join(dir, "config.json"), &i.Config); err != nil {
		return Info{}, err
	}
	if err := readJSON(filepath.Join(dir, "state.json"), &i.State); err != nil {
		return Info{}, err
	}
	if i.Status == Running && !alive {
		i.Status, i.Lost, i.ExitCode, i.Pid = Exited, true, LostCode, 0
	}
	return i, nil
}

// ErrNotFound is the error of Find for a name that no container has.
var ErrNotFound = errors.New("no such container")

// Find returns the container of a name, or of an ID or the beginning of one.
func (cs *Containers) Find(name string) (Info, error) {
	if validID(name) {
		i, err := cs.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %s", ErrNotFound, ShortID(name))
		}
		return i, err
	}
	infos, err := cs.List()
	if err != nil {
		return Info{}, err
	}
	var found []Info
	for _, i := range infos {
		if i.Name == name {
			return i, nil
		}
		if name != "" && strings.HasPrefix(i.ID, name) {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 0:
		return Info{}, fmt.Errorf("%w: %s (`build ps -a` lists them)", ErrNotFound, name)
	case 1:
		return found[0], nil
	}
	return Info{}, fmt.Errorf("%q begins the IDs of %d containers: give more of it", name, len(found))
}

// Pinned lists the layers that containers stand on, for garbage collection to
// leave alone.
func (cs *Containers) Pinned() ([]string, error) {
	infos, err := cs.List()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, i := range infos {
		ids = append(ids, i.Chain...)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// Locks are of the kind that belongs to an open file (fcntl(2), "Open file
// description locks"): it passes to a shim with the file, goes when the last
// process that has it open goes, and can be looked at without being taken.

var errLocked = errors.New("locked by another process")

func whole(kind int16) *unix.Flock_t { return &unix.Flock_t{Type: kind, Whence: unix.SEEK_SET} }

// tryLock locks a file, which is made if its directory is there, or fails with
// errLocked.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, whole(unix.F_WRLCK))
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		err = errLocked
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// waitLock waits for the lock. flock(2)'s own waiting would not heed ctx.
func waitLock(ctx context.Context, path string) (*os.File, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		f, err := tryLock(path)
		if !errors.Is(err, errLocked) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// locked reports whether some process holds the lock. Where that cannot be told one
// does: who takes its container for left over kills it.
func locked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	l := whole(unix.F_WRLCK)
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, l) != nil || l.Type != unix.F_UNLCK
}

// lockAll takes the lock under which containers are made, so that no two get
// one name.
func (cs *Containers) lockAll(ctx context.Context) (unlock func(), err error) {
	f, err := waitLock(ctx, filepath.Join(cs.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("lock containers: %w", err)
	}
	return func() { f.Close() }, nil
}
