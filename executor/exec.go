package executor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/user"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/executor/network"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// hostname is what a step's machine is called unless the build says otherwise.
const hostname = "buildkitsandbox"

// exec runs a process; what it changes in its root filesystem is one layer.
func (w *Worker) exec(ctx context.Context, n *llb.Node, op llb.Exec, in []Result) (_ Result, err error) {
	in = slices.Clone(in)
	for i := range in {
		if in[i].Layers, err = w.Fetch(ctx, in[i].Layers); err != nil {
			return Result{}, err
		}
	}
	w.execs.Add(1)
	w.warm(op)
	d, err := w.Store.Prepare(ctx, in[0].Layers)
	if err != nil {
		return Result{}, err
	}
	defer d.Discard()
	var layers []oci.Layer
	for _, r := range in {
		layers = append(layers, r.Layers...)
	}
	intact := w.watch(ctx, layers)
	x := &execution{Worker: w, n: n, op: op, in: in, draft: d}
	defer func() { err = errors.Join(err, x.close()) }()
	spec, err := x.spec(ctx)
	if err == nil {
		err = x.run(ctx, spec)
	}
	// First of all: a program that is damaged fails, or does not.
	if err := intact(); err != nil && ctx.Err() == nil {
		return Result{}, err
	}
	if err != nil {
		return Result{}, err
	}
	// The process has written behind the tree's back.
	d.Tree.Forget()
	l, err := d.Commit(ctx, nil)
	if err != nil {
		return Result{}, err
	}
	r := in[0].with(l)
	r.Torn = x.torn
	return r, nil
}

// warm has sandbox and network prepare for op, or one like it, while its files are,
// or those of the last one are looked at.
func (w *Worker) warm(op llb.Exec) {
	if w.Execs == 0 {
		return
	}
	w.Store.Warm()
	if op.Network != llb.NetworkHost && op.Network != llb.NetworkNone {
		w.Networks.Warm()
	}
	s, ok := w.Sandbox.(sandbox.Warmer)
	if !ok {
		return
	}
	cgroupParent := op.CgroupParent
	if cgroupParent == "" {
		cgroupParent = w.Store.Group()
	}
	s.Warm(w.Store.Lease(), cgroupParent)
}

// execution is one Exec being run: what it has borrowed, it gives back.
type execution struct {
	*Worker
	n       *llb.Node
	op      llb.Exec
	in      []Result
	draft   *cache.Draft
	torn    bool // a context that was mounted was not what it had been pinned with
	release []func() error
}

func (x *execution) close() error {
	var errs []error
	for i := len(x.release) - 1; i >= 0; i-- {
		errs = append(errs, x.release[i]())
	}
	return errors.Join(errs...)
}

func (x *execution) run(ctx context.Context, spec sandbox.Spec) error {
	if t := x.Meta[x.n.Digest].Timeout; t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, t, fmt.Errorf("stopped after its --timeout of %s", t))
		defer cancel()
	}
	p, err := x.start(ctx, spec)
	if err != nil {
		return fmt.Errorf("process %q: %w", strings.Join(x.op.Args, " "), x.foreign(spec.Env, err))
	}
	// The next one may come soon after a process that ends soon; else it is warmed
	// for when this one has ended.
	x.warmNext()
	err = p.Wait()
	x.warmNext()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("process %q did not complete successfully: %w", strings.Join(x.op.Args, " "), x.foreign(spec.Env, err))
	}
	return nil
}

// start starts the process. Where several are to be started, those of earlier lines
// come first: what comes after all of them goes through their results in that order.
func (x *execution) start(ctx context.Context, spec sandbox.Spec) (sandbox.Process, error) {
	line := 0
	if at := x.Meta[x.n.Digest].Positions; len(at) > 0 {
		line = at[0].Line
	}
	if err := x.starts.take(ctx, line); err != nil {
		return nil, err
	}
	defer x.starts.give()
	return x.Sandbox.Start(ctx, spec)
}

func (x *execution) warmNext() {
	if int(x.execs.Load()) < x.Execs {
		x.warm(x.op)
	}
}

// spec is the operation in the sandbox's terms.
func (x *execution) spec(ctx context.Context) (sandbox.Spec, error) {
	op := x.op
	s := sandbox.Spec{
		ID:         x.Store.Lease() + "-" + path.Base(x.draft.ID),
		Args:       op.Args,
		Dir:        op.Dir,
		Stdin:      stdin(op.Stdin),
		Stdout:     progress.Writer{Sink: x.Progress, Step: x.n.Digest, Stream: 1},
		Stderr:     progress.Writer{Sink: x.Progress, Step: x.n.Digest, Stream: 2},
		Root:       x.draft.Root,
		Hostname:   op.Hostname,
		Privileged: op.Security == llb.SecurityInsecure,
		// As with Docker and BuildKit: Dockerfiles use sudo and su.
		NewPrivileges: !x.NoNewPrivileges,
		CgroupParent:  op.CgroupParent,
		ShmSize:       op.ShmSize,
		Resources:     sandbox.Resources{Memory: x.Memory, CPUs: x.CPUs},
	}
	if s.CgroupParent == "" {
		s.CgroupParent = x.Store.Group()
	}
	if s.Hostname == "" {
		s.Hostname = hostname
	}
	if s.Dir == "" {
		s.Dir = "/"
	}
	for _, u := range op.Ulimits {
		s.Rlimits = append(s.Rlimits, sandbox.Rlimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	home, err := x.user(&s.User)
	if err != nil {
		return s, err
	}
	s.Env = append(s.Env, op.Env...)
	s.Env = append(s.Env, x.Meta[x.n.Digest].ProxyEnv...)
	if !hasEnv(s.Env, "HOME") {
		s.Env = append(s.Env, "HOME="+home)
	}
	if err := x.network(ctx, &s); err != nil {
		return s, err
	}
	if err := x.devices(&s); err != nil {
		return s, err
	}
	if err := x.workdir(s); err != nil {
		return s, err
	}
	return s, x.mounts(ctx, &s)
}

// workdir makes the working directory where the image lacks it; it and those
// made above it belong to the step's user, as in BuildKit.
func (x *execution) workdir(s sandbox.Spec) error {
	t := x.draft.Tree
	at, err := t.Resolve(s.Dir, true)
	if err != nil {
		return fmt.Errorf("working directory %s: %w", s.Dir, err)
	}
	e := &edit{to: t, now: time.Now()}
	if err := e.mkdirAll(at, 0o755, &owner{int(s.User.UID), int(s.User.GID)}); err != nil {
		return fmt.Errorf("working directory %s: %w", s.Dir, err)
	}
	return nil
}

// stdin is nil, not an empty reader, where there is none: see sandbox.Spec.
func stdin(data []byte) io.Reader {
	if len(data) == 0 {
		return nil
	}
	return bytes.NewReader(data)
}

func hasEnv(env []string, name string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, name+"=") {
			return true
		}
	}
	return false
}

// user looks the step's user up in its root, and returns the home directory.
func (x *execution) user(u *sandbox.User) (home string, err error) {
	name := x.op.User
	if name == "" {
		name = "0"
	}
	open := func(p string) (*os.File, error) {
		f, err := openUserFile(x.draft.Tree, p)
		if missing(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return f.(*os.File), nil
	}
	passwd, err := open("/etc/passwd")
	if err != nil {
		return "", err
	}
	if passwd != nil {
		defer passwd.Close()
	}
	group, err := open("/etc/group")
	if err != nil {
		return "", err
	}
	if group != nil {
		defer group.Close()
	}
	var users, groups io.Reader // nil, not a nil *os.File
	if passwd != nil {
		users = passwd
	}
	if group != nil {
		groups = group
	}
	found, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, users, groups)
	if err != nil {
		return "", fmt.Errorf("user %q: %w", name, err)
	}
	u.UID, u.GID = uint32(found.Uid), uint32(found.Gid)
	// The main group stands among the supplementary ones too, or a process
	// could give it up and pass what is denied to the group (CVE-2022-36109).
	u.Groups = []uint32{u.GID}
	if strings.Contains(name, ":") && isNumeric(name) {
		return found.Home, nil // both given as numbers: no further groups
	}
	for _, g := range found.Sgids {
		u.Groups = append(u.Groups, uint32(g))
	}
	return found.Home, nil
}

func isNumeric(s string) bool { return strings.Trim(s, "0123456789:") == "" }

func (x *execution) network(ctx context.Context, s *sandbox.Spec) error {
	mode := network.Bridge
	switch x.op.Network {
	case llb.NetworkHost:
		mode = network.Host
	case llb.NetworkNone:
		mode = network.None
	}
	end, err := x.Networks.Attach(ctx, mode, nil)
	if err != nil {
		return err
	}
	x.release = append(x.release, end.Close)
	s.NetNS = end.NetNS
	conf, err := network.ResolvConf(mode)
	if err != nil {
		return err
	}
	var extra []network.HostEntry
	for _, h := range x.op.Hosts {
		extra = append(extra, network.HostEntry{Name: h.Name, Addr: h.Addr})
	}
	// Without its address, which is another one each time: a step may keep what it
	// reads there.
	hosts := network.Hosts(s.Hostname, netip.Addr{}, end.Resolve(extra))
	s.Mounts = append(s.Mounts,
		oci.Mount{Type: "file", Target: "/etc/resolv.conf", Data: conf, Options: []string{"mode=0644"}},
		oci.Mount{Type: "file", Target: "/etc/hosts", Data: hosts, Options: []string{"mode=0644"}})
	return nil
}
