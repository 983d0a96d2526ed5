// Package container keeps the containers of `build run`: their state, their
// logs, and for each that runs one process that looks after it. There is no
// daemon.
//
// A container is a directory, <dir>/<id>:
//
//	lock         locked while its supervisor lives; a supervisor is the process
//	             that runs Supervise: `build run` itself, or a shim (shim.go)
//	config.json  what it is, from Create on; a directory without is garbage
//	state.json   how it is; written by its supervisor only
//	log          what it wrote (log.go)
//	control      the supervisor's socket (control.go)
//	hosts, hostname, resolv.conf  mounted into it
//
// Files are written under another name and renamed. That a container runs is
// what its lock says, not state.json: one whose supervisor was killed has ended.
package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/executor/network"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
)

// Snapshots keeps the writable layers. Every cache.Driver is one.
type Snapshots interface {
	Prepare(ctx context.Context, id string, chain []string) (cache.Snapshot, error)
	Remove(ctx context.Context, id string) error
}

// Networks gives containers their networks. *network.Networks is one.
type Networks interface {
	Attach(ctx context.Context, mode string, ports []network.Port) (*network.Endpoint, error)
}

// Containers are those of one directory. It is safe for concurrent use, by
// several processes too.
type Containers struct {
	Dir       string
	Snapshots Snapshots
	Sandbox   sandbox.Sandbox
	Networks  Networks
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Image is what a container is made from.
type Image struct {
	Name   string     // as the user gave it
	ID     oci.Digest // of its configuration
	Config oci.Config
	Chain  []string // IDs of its layers, lowest first
}

// Options are the user's wishes, over what the image says. The zero value runs
// the image as it is.
type Options struct {
	Name    string // "": one is made up
	Remove  bool   // removed by its supervisor when it has ended
	Process ProcessOptions
	Network NetworkOptions

	Mounts      []oci.Mount // binds, on top of the image
	Resources   sandbox.Resources
	ReadOnly    bool
	Privileged  bool
	StopSignal  string         // "": the image's, else SIGTERM
	StopTimeout *time.Duration // from the stop signal to SIGKILL; nil: 10 s
}

// ProcessOptions say what runs.
type ProcessOptions struct {
	// Entrypoint takes the place of the image's, and of its command, where it
	// is not nil; [""] is none.
	Entrypoint []string
	Args       []string // in place of the image's command
	Env        []string // "NAME=value", over the image's
	Dir, User  string
	Terminal   bool
	Stdin      bool // the supervisor's standard input is the process's
	Init       bool
}

// NetworkOptions say what it is connected to.
type NetworkOptions struct {
	Mode     string // network.Bridge, network.Host or network.None; "" is Bridge
	Ports    []network.Port
	Hostname string              // "": the short ID; on the host's network the host's
	Hosts    []network.HostEntry // further lines of /etc/hosts; an Addr network.HostGateway is the host
}

// Config is a container as it was made. It does not change.
type Config struct {
	ID          string            `json:"id"` // 64 hexadecimal digits
	Name        string            `json:"name"`
	Image       string            `json:"image"`
	ImageID     oci.Digest        `json:"imageID"`
	Chain       []string          `json:"chain"` // layers it stands on
	Created     time.Time         `json:"created"`
	Remove      bool              `json:"remove,omitempty"`
	Root        oci.Mount         `json:"root"`
	Args        []string          `json:"args"`
	Env         []string          `json:"env"`
	Dir         string            `json:"dir"`
	User        sandbox.User      `json:"user"`
	Terminal    bool              `json:"terminal,omitempty"`
	Stdin       bool              `json:"stdin,omitempty"`
	Init        bool              `json:"init,omitempty"`
	StopSignal  string            `json:"stopSignal"`
	StopTimeout time.Duration     `json:"stopTimeout"` // nanoseconds
	Network     NetworkOptions    `json:"network"`
	Mounts      []oci.Mount       `json:"mounts,omitempty"`
	Resources   sandbox.Resources `json:"resources"`
	ReadOnly    bool              `json:"readOnly,omitempty"`
	Privileged  bool              `json:"privileged,omitempty"`
}

// Snapshot is the ID of the container's writable layer.
func (c *Config) Snapshot() string { return "container-" + c.ID }

// ShortID is what people see.
func ShortID(id string) string { return id[:min(12, len(id))] }

// Container is one that this process may supervise: it holds its lock.
type Container struct {
	Config
	dir  string
	lock *os.File
}

// Close gives the container up; what Remove asks for is not done.
func (c *Container) Close() error { return c.lock.Close() }

// Abandon removes a container that was created and is not to run.
func (cs *Containers) Abandon(c *Container) error {
	return cs.discard(context.Background(), c.dir, c.Snapshot())
}

// Create makes a container of an image, ready to be supervised by this process
// or by a shim. The caller closes it.
func (cs *Containers) Create(ctx context.Context, img Image, o Options) (_ *Container, err error) {
	if err := os.MkdirAll(cs.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	unlock, err := cs.lockAll(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := cs.sweep(ctx); err != nil {
		return nil, fmt.Errorf("clean up after killed containers: %w", err)
	}
	c := &Container{Config: Config{
		ID: newID(), Name: o.Name,
		Image: img.Name, ImageID: img.ID, Chain: img.Chain, Created: cs.now(),
		Remove: o.Remove, Mounts: o.Mounts, Resources: o.Resources,
		ReadOnly: o.ReadOnly, Privileged: o.Privileged, Network: o.Network,
		Terminal: o.Process.Terminal, Stdin: o.Process.Stdin, Init: o.Process.Init,
	}}
	if err := cs.name(&c.Config); err != nil {
		return nil, err
	}
	if err := c.Config.apply(img.Config, o); err != nil {
		return nil, err
	}
	c.dir = filepath.Join(cs.Dir, c.ID)
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, cs.discard(context.WithoutCancel(ctx), c.dir, c.Snapshot()))
			if c.lock != nil {
				c.lock.Close()
			}
		}
	}()
	if c.lock, err = tryLock(filepath.Join(c.dir, "lock")); err != nil {
		return nil, err
	}
	snap, err := cs.Snapshots.Prepare(ctx, c.Snapshot(), img.Chain)
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	defer snap.Tree.Close()
	c.Root = snap.Root
	wanted := o.Process.User
	if wanted == "" {
		wanted = img.Config.User
	}
	if err := c.setUser(wanted, openIn(snap.Tree)); err != nil {
		return nil, err
	}
	if err := writeJSON(filepath.Join(c.dir, "state.json"), State{Status: Created}); err != nil {
		return nil, err
	}
	return c, writeJSON(filepath.Join(c.dir, "config.json"), c.Config)
}

// name checks the wanted name or finds one that is free. The caller holds the
// lock of all.
func (cs *Containers) name(c *Config) error {
	infos, err := cs.List()
	if err != nil {
		return err
	}
	if c.Name == "" {
		c.Name = randomName(func(n string) bool {
			return slices.ContainsFunc(infos, func(i Info) bool { return i.Name == n })
		})
		return nil
	}
	if !validName(c.Name) {
		return fmt.Errorf("container name %q: want letters, digits, _ . -, and first a letter or digit", c.Name)
	}
	for _, i := range infos {
		if i.Name == c.Name {
			return fmt.Errorf("container name %q is in use by container %s: remove it with `build rm %s`, or choose another name",
				c.Name, ShortID(i.ID), c.Name)
		}
	}
	return nil
}

func validName(s string) bool {
	for i, r := range s {
		alnum := r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", r)) {
			return false
		}
	}
	return s != ""
}

// Remove removes a container that is not running; force stops it first.
func (cs *Containers) Remove(ctx context.Context, name string, force bool) error {
	info, err := cs.Find(name)
	if err != nil {
		return err
	}
	if info.Status == Running && !force {
		return fmt.Errorf("container %s is running: stop it first with `build stop %s`, or use --force", info.Name, info.Name)
	}
	if info.Status == Running {
		if err := ignoreGone(cs.Kill(ctx, info.ID, syscall.SIGKILL)); err != nil {
			return err
		}
	}
	dir := filepath.Join(cs.Dir, info.ID)
	lock, err := waitLock(ctx, filepath.Join(dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) && info.Config.Remove {
		return nil // its supervisor was quicker
	}
	if err != nil {
		return fmt.Errorf("remove container %s: %w", info.Name, err)
	}
	defer lock.Close()
	// Its supervisor may have been killed, and without the directory no sweep
	// knows that the control group is ours.
	if err := sandbox.Sweep("", func(id string) bool { return id != info.ID }); err != nil {
		return fmt.Errorf("remove container %s: %w", info.Name, err)
	}
	return cs.discard(ctx, dir, info.Snapshot())
}

// discard removes a container's directory and writable layer. The caller holds
// its lock, or nobody can. Without config.json it is gone for all others; what
// of it is left if this is interrupted the next Create sweeps.
func (cs *Containers) discard(ctx context.Context, dir, snapshot string) error {
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := cs.Snapshots.Remove(ctx, snapshot); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// sweep removes what killed processes left: half-made containers, and those
// that were to be removed at their end. The caller holds the lock of all.
func (cs *Containers) sweep(ctx context.Context) error {
	// First, while the directories tell which control groups are ours: steps,
	// and containers of another directory, are not ours to judge.
	err := sandbox.Sweep("", func(id string) bool {
		dir := filepath.Join(cs.Dir, id)
		return !exists(dir) || locked(filepath.Join(dir, "lock"))
	})
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(cs.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !validID(e.Name()) {
			continue
		}
		dir := filepath.Join(cs.Dir, e.Name())
		lock, err := tryLock(filepath.Join(dir, "lock"))
		if errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist) && !exists(dir) {
			continue
		}
		if err != nil {
			return err
		}
		c := Config{ID: e.Name()}
		err = readJSON(filepath.Join(dir, "config.json"), &c)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			err = nil // damaged: `build rm` removes it
		} else if err != nil || c.Remove {
			err = cs.discard(ctx, dir, c.Snapshot())
		}
		lock.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (cs *Containers) now() time.Time {
	if cs.Now != nil {
		return cs.Now()
	}
	return time.Now()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func newID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func validID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// writeJSON replaces the file as a whole.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'))
}

func writeFile(path string, b []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	// Whatever the umask: all users of a container read /etc/hosts.
	if err := os.Chmod(tmp, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
