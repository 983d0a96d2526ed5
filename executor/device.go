package executor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/executor/cdi"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
)

// devices adds what RUN --device asks for: nodes, mounts, variables, groups.
func (x *execution) devices(s *sandbox.Spec) error {
	if len(x.op.Devices) == 0 {
		return nil
	}
	registry := x.Devices()
	var names []string
	for _, d := range x.op.Devices {
		found, err := registry.Find(d.Name)
		var missing *cdi.NotFoundError
		if errors.As(err, &missing) && !d.Required {
			x.Progress.Emit(progress.Warning{Message: fmt.Sprintf("%v; the step runs without it", missing)})
			continue
		}
		if err != nil {
			return err
		}
		for _, n := range found {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	edits, err := registry.Edits(names)
	if err != nil {
		return err
	}
	for _, kv := range edits.Env {
		name, _, _ := strings.Cut(kv, "=")
		s.Env = slices.DeleteFunc(s.Env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		s.Env = append(s.Env, kv)
	}
	for _, gid := range edits.GIDs {
		if gid != 0 && !slices.Contains(s.User.Groups, gid) {
			s.User.Groups = append(s.User.Groups, gid)
		}
	}
	for _, m := range edits.Mounts {
		s.Mounts = append(s.Mounts, deviceMount(m))
	}
	for _, n := range edits.Nodes {
		d, err := deviceNode(n, s.User)
		if err != nil {
			return err
		}
		s.Devices = slices.DeleteFunc(s.Devices, func(old sandbox.Device) bool { return old.Path == d.Path })
		s.Devices = append(s.Devices, d)
	}
	return nil
}

func deviceMount(m cdi.Mount) oci.Mount {
	out := oci.Mount{Type: m.Type, Source: m.HostPath, Target: m.ContainerPath, Options: m.Options}
	if bind := m.Type == "" || m.Type == "none" || m.Type == "bind"; bind {
		out.Type = "bind"
		if !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			out.Options = append([]string{"rbind"}, m.Options...)
		}
	}
	return out
}

// deviceNode is n with what it leaves out: as the host has it, owned by who
// uses it.
func deviceNode(n cdi.Node, u sandbox.User) (sandbox.Device, error) {
	if err := n.Fill(); err != nil {
		return sandbox.Device{}, err
	}
	d := sandbox.Device{Path: n.Path, Major: uint32(n.Major), Minor: uint32(n.Minor), UID: u.UID, GID: u.GID, Access: n.Permissions}
	d.Mode = map[string]uint32{"b": unix.S_IFBLK, "c": unix.S_IFCHR, "p": unix.S_IFIFO}[n.Type] | 0o666
	if n.Mode != nil {
		d.Mode = d.Mode&unix.S_IFMT | *n.Mode&0o7777
	}
	if n.UID != nil {
		d.UID = *n.UID
	}
	if n.GID != nil {
		d.GID = *n.GID
	}
	if d.Access == "" {
		d.Access = "rwm"
	}
	return d, nil
}
