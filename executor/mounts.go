package executor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/solver"
)

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
