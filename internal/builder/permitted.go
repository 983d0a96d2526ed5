package builder

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/861fb494/build/executor/cdi"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/solver"
)

// permitted refuses what needs an entitlement that was not given, and gives the
// devices that steps ask for by an alias their names.
func (j *job) permitted(context.Context) error {
	var err error
	devices := false
	j.graph.Walk(func(n *llb.Node) {
		op, ok := n.Op.(llb.Exec)
		if !ok || err != nil {
			return
		}
		devices = devices || len(op.Devices) > 0
		for _, need := range []struct {
			is   bool
			name string
		}{
			{op.Network == llb.NetworkHost && j.Frontend.Network != llb.NetworkHost, "network.host"},
			{op.Security == llb.SecurityInsecure, "security.insecure"},
		} {
			if need.is && !slices.Contains(j.Allow, need.name) {
				err = j.refuse(n, fmt.Errorf("it needs %s, which was not allowed: add --allow %s", need.name, need.name))
				return
			}
		}
	})
	if err != nil || !devices || slices.Contains(j.Allow, "device") {
		return err
	}
	j.graph, err = j.graph.Rewrite(func(n *llb.Node) (llb.Op, error) {
		op, ok := n.Op.(llb.Exec)
		if !ok || len(op.Devices) == 0 {
			return n.Op, nil
		}
		op.Devices, err = allowedDevices(j.devices(), op.Devices, j.AllowDevices)
		if err != nil {
			return nil, j.refuse(n, err)
		}
		return op, nil
	})
	return err
}

func (j *job) refuse(n *llb.Node, err error) error {
	return &solver.StepError{Node: n, Meta: j.graph.Meta[n.Digest], Err: err}
}

// allowedDevices is wanted by the devices' full names. allowed is what was
// allowed, name by name or alias; what an alias stands for is not looked at
// further, as in BuildKit.
func allowedDevices(r *cdi.Registry, wanted []llb.Device, allowed map[string]string) ([]llb.Device, error) {
	var out []llb.Device
	granted := map[string]bool{}
	for alias, name := range allowed {
		if alias != name {
			continue
		}
		found, err := r.Find(name)
		if err != nil {
			continue // it is asked for by an alias, or not at all
		}
		for _, n := range found {
			granted[n] = true
		}
	}
	for _, d := range wanted {
		if name, ok := allowed[d.Name]; ok && name != d.Name {
			out = append(out, llb.Device{Name: name, Required: d.Required})
			continue
		}
		found, err := r.Find(d.Name)
		var missing *cdi.NotFoundError
		if errors.As(err, &missing) && !d.Required {
			out = append(out, d) // that it is missing is said when the step runs
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, n := range found {
			if !granted[n] && !r.AutoAllowed(n) {
				return nil, fmt.Errorf("it needs the device %s, which was not allowed: add --allow device=%s, or --allow device for all", n, n)
			}
			out = append(out, llb.Device{Name: n, Required: d.Required})
		}
	}
	return out, nil
}
