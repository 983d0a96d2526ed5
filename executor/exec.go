package executor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/user"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/network"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/solver"
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
	p, err := x.Sandbox.Start(ctx, spec)
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

// mounts adds what RUN --mount asks for.
func (x *execution) mounts(ctx context.Context, s *sandbox.Spec) error {
	for _, m := range x.op.Mounts {
		var err error
		switch m.Type {
		case llb.MountBind:
			err = x.bind(ctx, s, m)
		case llb.MountCache:
			err = x.cacheMount(ctx, s, m)
		case llb.MountTmpfs:
			o := []string{"nosuid"}
			if m.Size > 0 {
				o = append(o, fmt.Sprintf("size=%d", m.Size))
			}
			s.Mounts = append(s.Mounts, oci.Mount{Type: "tmpfs", Source: "tmpfs", Target: m.Target, Options: o})
		case llb.MountSecret:
			err = x.secret(ctx, s, m)
		case llb.MountSSH:
			err = x.ssh(s, m)
		default:
			err = fmt.Errorf("unknown type %q", m.Type)
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	return nil
}

// bind mounts another tree, or something in it. What is written to it is lost.
func (x *execution) bind(ctx context.Context, s *sandbox.Spec, m llb.Mount) error {
	r, err := x.mounted(ctx, m)
	if err != nil {
		return err
	}
	snap, err := x.Store.View(ctx, r.Layers)
	if err != nil {
		return err
	}
	x.release = append(x.release, snap.Tree.Close)
	at, err := snap.Tree.Resolve(mountSource(m), true)
	if err != nil {
		return err
	}
	if _, err := snap.Tree.Quick(at); err != nil {
		return fmt.Errorf("source %s: %w", mountSource(m), err)
	}
	root := snap.Root
	if !m.ReadOnly {
		d, err := x.Store.Prepare(ctx, r.Layers)
		if err != nil {
			return err
		}
		x.release = append(x.release, func() error { d.Discard(); return nil })
		root = d.Root
	} else {
		root.Options = append(root.Options[:len(root.Options):len(root.Options)], "ro")
	}
	root.Target, root.Sub = m.Target, at
	if at == "/" {
		root.Sub = ""
	}
	s.Mounts = append(s.Mounts, root)
	return nil
}

// mounted is the input that the mount m is of, in layers.
func (x *execution) mounted(ctx context.Context, m llb.Mount) (Result, error) {
	r := x.in[m.Input]
	if r.Local != nil {
		return x.contextLayer(ctx, *r.Local)
	}
	return r, nil
}

// contextLayer is the selected files of a context as a layer, for a process to
// see: the user's directory itself is never mounted.
func (x *execution) contextLayer(ctx context.Context, src llb.Source) (Result, error) {
	sel := src.Select
	paths := sel.Paths
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	var f llb.File
	for _, p := range paths {
		f.Actions = append(f.Actions, llb.Copy{Input: 1, Sources: []string{p}, Dest: p})
	}
	n := llb.New(f, llb.New(llb.Source{Scheme: llb.Scratch}), llb.New(src))
	key := partsDigest([]solver.Part{{Name: "context", Value: n.Digest.String()}})
	if r, err := x.lookup(key); err == nil {
		return r, nil
	}
	r, err := x.file(ctx, n, f, []Result{{}, {Local: &src}})
	if err != nil {
		return r, err
	}
	if r.Torn {
		x.torn = true
		return r, nil
	}
	return r, x.record(key, r)
}

// secret mounts a secret as a file in memory, or puts it into the environment.
func (x *execution) secret(ctx context.Context, s *sandbox.Spec, m llb.Mount) error {
	data, err := x.Secret(ctx, m.ID)
	if errors.Is(err, fs.ErrNotExist) {
		if m.Required {
			return fmt.Errorf("secret %q was not given: add --secret id=%s,src=FILE", m.ID, m.ID)
		}
		if m.Env != "" { // as with BuildKit it is empty, not missing
			s.Env = append(s.Env, m.Env+"=")
		}
		return nil
	}
	if err != nil {
		return err
	}
	if m.Env != "" {
		s.Env = append(s.Env, m.Env+"="+string(data))
	}
	if m.Target == "" {
		return nil
	}
	mode := uint32(0o400)
	if m.ModeSet {
		mode = m.Mode
	}
	s.Mounts = append(s.Mounts, oci.Mount{
		Type: "file", Target: m.Target, Data: data,
		Options: []string{"ro", "nosuid", "nodev", "noexec", fmt.Sprintf("uid=%d", m.UID), fmt.Sprintf("gid=%d", m.GID), fmt.Sprintf("mode=%04o", mode)},
	})
	return nil
}

func (x *execution) ssh(s *sandbox.Spec, m llb.Mount) error {
	socket, err := x.SSH(m.ID)
	if errors.Is(err, fs.ErrNotExist) {
		if m.Required {
			return fmt.Errorf("ssh agent %q was not given: add --ssh %s", m.ID, m.ID)
		}
		return nil
	}
	if err != nil {
		return err
	}
	// Its mode and owner are those of the mount, not those of the user's socket.
	proxy, stop, err := x.forward(socket, m)
	if err != nil {
		return err
	}
	x.release = append(x.release, stop)
	s.Mounts = append(s.Mounts, oci.Mount{Type: "bind", Source: proxy, Target: m.Target, Options: []string{"bind"}})
	return nil
}

// MountID names the cache mount m of a step in the store; from is what it begins
// with, if m has an Input.
func MountID(m llb.Mount, from Result) string {
	// Owner, mode and first content are part of what it is: as in BuildKit,
	// mounts that differ in them are different ones.
	id := m.CacheID
	if m.UID != 0 || m.GID != 0 || m.ModeSet {
		id += fmt.Sprintf(" owner %d:%d mode %o", m.UID, m.GID, m.Mode)
	}
	if m.Input != 0 {
		id += " from " + string(from.Content()) + mountSource(m)
	}
	return id
}

// cacheFile is the name, in the directory of a cache mount, of the file that the
// mount is where it begins with a file.
const cacheFile = "file"

// cacheMount mounts a directory that outlives the build, or a file.
func (x *execution) cacheMount(ctx context.Context, s *sandbox.Spec, m llb.Mount) error {
	var from Result
	if m.Input != 0 {
		from = x.in[m.Input]
	}
	id := MountID(m, from)
	init := cache.MountInit{Fill: func(dir string) error { return x.fill(ctx, m, dir) }}
	if x.RestoreMount != nil {
		init.Restore = func(dir string) (map[string][]byte, error) { return x.RestoreMount(ctx, id, m, dir) }
	}
	isFile, err := x.beginsWithFile(ctx, m)
	if err != nil {
		return err
	}
	dir, release, err := x.Store.CacheMount(ctx, id, m.Sharing, init)
	if err != nil {
		return err
	}
	x.release = append(x.release, func() error { release(); return nil })
	if x.MountUsed != nil {
		x.MountUsed(id, m, dir)
	}
	o := []string{"bind"}
	if m.ReadOnly {
		o = append(o, "ro")
	}
	if isFile {
		dir = filepath.Join(dir, cacheFile)
	}
	s.Mounts = append(s.Mounts, oci.Mount{Type: "bind", Source: dir, Target: m.Target, Options: o})
	return nil
}

// beginsWithFile reports whether the cache mount m begins with something that is no
// directory.
func (x *execution) beginsWithFile(ctx context.Context, m llb.Mount) (bool, error) {
	if m.Input == 0 || mountSource(m) == "/" {
		return false, nil
	}
	from, top, err := x.cacheSource(ctx, m)
	if err != nil {
		return false, err
	}
	return !top.IsDir(), from.Close()
}

// cacheSource is what the cache mount m begins with, and the tree that has it, to be
// closed.
func (x *execution) cacheSource(ctx context.Context, m llb.Mount) (*chainView, tree.Entry, error) {
	r, err := x.mounted(ctx, m)
	if err != nil {
		return nil, tree.Entry{}, err
	}
	from, err := x.view(ctx, x.n, r)
	if err != nil {
		return nil, tree.Entry{}, err
	}
	at, err := from.Resolve(mountSource(m), true)
	if err == nil {
		var top tree.Entry
		if top, err = from.Lstat(at); err == nil {
			return from, top, nil
		}
	}
	from.Close()
	return nil, tree.Entry{}, err
}

// fill gives a new cache mount its first content.
func (x *execution) fill(ctx context.Context, m llb.Mount, dir string) error {
	to, err := tree.New(dir, nil)
	if err != nil {
		return err
	}
	defer to.Close()
	e := tree.Entry{Mode: 0o755, UID: m.UID, GID: m.GID, ModTime: time.Now()}
	if m.ModeSet {
		e.Mode = m.Mode
	}
	if m.Input == 0 {
		return to.SetMeta("/", e)
	}
	from, top, err := x.cacheSource(ctx, m)
	if err != nil {
		return err
	}
	defer from.Close()
	if !top.IsDir() {
		if err := copyEntry(from.Tree, top.Path, to, "/"+cacheFile); err != nil {
			return err
		}
		return to.SetMeta("/", tree.Entry{Mode: 0o755, ModTime: e.ModTime})
	}
	if err := copyAll(from.Tree, top.Path, to, "/"); err != nil {
		return err
	}
	return to.SetMeta("/", top)
}
