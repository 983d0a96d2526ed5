package dockerfile

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/861fb494/build/llb"
)

// mounts puts the mounts of a RUN into op, and what they need into inputs.
func (x *step) mounts(s state, c *instructions.RunCommand, op llb.Exec, inputs []*llb.Node) (llb.Exec, []*llb.Node, error) {
	sockets := 0
	for i, m := range instructions.GetMounts(c) {
		var from *stage
		if m.From != "" {
			from = x.from[i]
			if err := x.available(from, m.From); err != nil {
				return op, nil, err
			}
		}
		var out llb.Mount
		var err error
		switch m.Type {
		case instructions.MountTypeSecret:
			out, err = secretMount(s, m)
		case instructions.MountTypeSSH:
			if out, err = sshMount(s, m, sockets); err == nil && sockets == 0 {
				if _, ok := env(op.Env).Get("SSH_AUTH_SOCK"); !ok {
					op.Env = env(op.Env).set("SSH_AUTH_SOCK", cmp.Or(m.Target, out.Target)) // as it is written
				}
			}
			sockets++
		default:
			if out, err = treeMount(s, m); err == nil {
				out, inputs = x.mountInput(m, from, out, inputs)
			}
		}
		if err != nil {
			return op, nil, err
		}
		x.mount(m, cmp.Or(out.ID, out.CacheID))
		if out.Type == llb.MountCache {
			if ns := x.args["BUILDKIT_CACHE_MOUNT_NS"]; ns != "" {
				out.CacheID = ns + "/" + out.CacheID
			}
		}
		op.Mounts = append(op.Mounts, out)
	}
	slices.SortStableFunc(op.Mounts, inOrder)
	return op, inputs, nil
}

// inOrder is the order in which BuildKit mounts: trees by their targets, so that
// none hides another that is below it, then secrets, then sockets.
func inOrder(a, b llb.Mount) int {
	rank := func(m llb.Mount) int {
		switch m.Type {
		case llb.MountSecret:
			return 1
		case llb.MountSSH:
			return 2
		}
		return 0
	}
	if c := cmp.Compare(rank(a), rank(b)); c != 0 || rank(a) > 0 {
		return c
	}
	return cmp.Compare(a.Target, b.Target)
}

// target is where m is mounted: relative to the working directory.
func (s state) target(m *instructions.Mount) string {
	if path.IsAbs(m.Target) {
		return path.Clean(m.Target)
	}
	return path.Join("/", s.dir, m.Target)
}

// treeMount is a bind, cache or tmpfs mount, without its input.
func treeMount(s state, m *instructions.Mount) (llb.Mount, error) {
	out := llb.Mount{Type: string(m.Type), ReadOnly: m.ReadOnly}
	if out.Target = s.target(m); out.Target == "/" {
		return out, fmt.Errorf("invalid mount target %q", m.Target)
	}
	if empty := m.Type == instructions.MountTypeTmpfs || m.Type == instructions.MountTypeCache && m.From == ""; empty && path.Join("/", m.Source) != "/" {
		return out, fmt.Errorf("mount %s: there is no source %s: a %s mount without from begins empty", m.Target, m.Source, m.Type)
	}
	switch m.Type {
	case instructions.MountTypeTmpfs:
		out.Size = m.SizeLimit
	case instructions.MountTypeCache:
		out.Sharing = string(m.CacheSharing)
		if out.Sharing == "" {
			out.Sharing = string(instructions.MountSharingShared)
		}
		if out.CacheID = m.CacheID; out.CacheID == "" {
			out.CacheID = path.Clean(m.Target)
		}
		out.UID, out.GID, out.Mode, out.ModeSet = owner(m, 0o755)
	}
	return out, nil
}

// mountInput is the tree that a bind shows, or that a cache begins with.
func (x *step) mountInput(m *instructions.Mount, from *stage, out llb.Mount, inputs []*llb.Node) (llb.Mount, []*llb.Node) {
	if m.Type == instructions.MountTypeTmpfs || m.Type == instructions.MountTypeCache && from == nil {
		return out, inputs
	}
	source := path.Join("/", m.Source)
	n := x.input(from, llb.Select{Paths: []string{source}})
	if m.Type == instructions.MountTypeCache && source == "/" && out.ModeSet {
		// A cache with an owner of its own begins with an empty directory.
		source = "/cache"
		mkdir := llb.Mkdir{Path: source, Mode: out.Mode, Owner: llb.Owner(fmt.Sprintf("%d:%d", out.UID, out.GID))}
		n = x.internal("setting cache mount permissions", llb.File{Actions: []llb.Action{mkdir}}, n)
	}
	if source != "/" {
		out.Source = source
	}
	inputs = append(inputs, n)
	out.Input = len(inputs) - 1
	return out, inputs
}

func secretMount(s state, m *instructions.Mount) (llb.Mount, error) {
	out := llb.Mount{Type: llb.MountSecret, ID: m.CacheID, Required: m.Required}
	if m.Source != "" {
		out.ID = m.Source
	}
	if out.ID == "" {
		if m.Target == "" {
			return out, errors.New("one of source, target required")
		}
		out.ID = path.Base(m.Target)
	}
	switch {
	case m.Target != "":
		out.Target = s.target(m)
	case m.Env == nil:
		out.Target = "/run/secrets/" + path.Base(out.ID)
	}
	if m.Env != nil {
		out.Env = *m.Env
	}
	out.UID, out.GID, out.Mode, out.ModeSet = owner(m, 0o400)
	if !out.ModeSet {
		out.Mode, out.ModeSet = 0o400, true
	}
	return out, nil
}

// sshMount is the nth socket of a RUN.
func sshMount(s state, m *instructions.Mount, n int) (llb.Mount, error) {
	out := llb.Mount{Type: llb.MountSSH, ID: m.CacheID, Required: m.Required}
	if m.Source != "" {
		return out, errors.New("ssh does not support source")
	}
	if out.ID == "" {
		out.ID = "default"
	}
	if out.Target = fmt.Sprintf("/run/buildkit/ssh_agent.%d", n); m.Target != "" {
		out.Target = s.target(m)
	}
	out.UID, out.GID, out.Mode, out.ModeSet = owner(m, 0o600)
	if !out.ModeSet {
		out.Mode, out.ModeSet = 0o600, true
	}
	return out, nil
}

// owner is a mount's owner and mode; set tells whether it names any of them.
func owner(m *instructions.Mount, standard uint32) (uid, gid int, mode uint32, set bool) {
	if m.UID == nil && m.GID == nil && m.Mode == nil {
		return 0, 0, 0, false
	}
	if m.UID != nil {
		uid = int(*m.UID)
	}
	if m.GID != nil {
		gid = int(*m.GID)
	}
	if mode = standard; m.Mode != nil {
		mode = uint32(*m.Mode)
	}
	return uid, gid, mode, true
}
