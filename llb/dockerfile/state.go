package dockerfile

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/parser"
)

// state is what the instructions of a stage change. A state is a value: who
// changes a slice or a map of it makes a new one.
type state struct {
	root  *llb.Node // the root filesystem
	local string    // instead of root: the user's directory of that name
	bare  bool      // root is a tree from outside that no layer holds
	// windows: root is a Windows image's.
	windows bool
	image   oci.Image
	env     env    // what RUN sees and what variables are looked up in: ENV and ARG
	dir     string // of RUN, absolute

	args       []instructions.KeyValuePairOptional // ARGs declared up to here
	included   []included                          // files whose instructions these are
	workdirSet bool
	// Where the stage has set these; a stage built upon it begins anew.
	cmd, entrypoint, healthcheck []parser.Range
}

// env is an environment, "NAME=value", the name set last at the end. It is
// never changed in place.
type env []string

func (e env) index(name string) int {
	return slices.IndexFunc(e, func(kv string) bool {
		return len(kv) > len(name) && kv[len(name)] == '=' && kv[:len(name)] == name
	})
}

// Get returns the variable's value and whether it is set.
func (e env) Get(name string) (string, bool) {
	if i := e.index(name); i >= 0 {
		return e[i][len(name)+1:], true
	}
	return "", false
}

// Keys are the names, in order.
func (e env) Keys() []string {
	names := make([]string, len(e))
	for i, kv := range e {
		names[i], _, _ = strings.Cut(kv, "=")
	}
	return names
}

func (e env) set(name, value string) env {
	out := e.unset(name)
	return append(out, name+"="+value)
}

func (e env) unset(name string) env {
	out := make(env, 0, len(e)+1)
	i := e.index(name)
	for j, kv := range e {
		if j != i {
			out = append(out, kv)
		}
	}
	return out
}

// variable is the variable name, which is set.
func (s state) variable(name string) llb.Variable {
	value, _ := s.env.Get(name)
	arg := slices.ContainsFunc(s.args, func(a instructions.KeyValuePairOptional) bool { return a.Key == name })
	return llb.Variable{Name: name, Value: value, Arg: arg && !slices.Contains(s.image.Config.Env, name+"="+value)}
}

func (s state) variables() []llb.Variable {
	var out []llb.Variable
	for _, name := range s.env.Keys() {
		out = append(out, s.variable(name))
	}
	return out
}

// inherit is the state that a stage built upon another begins with.
func (s state) inherit() state {
	s.image = cloneImage(s.image)
	s.image.Config.OnBuild = nil
	s.args = slices.Clip(s.args)
	s.cmd, s.entrypoint, s.healthcheck = nil, nil, nil
	return s
}

// commit adds an entry to the history.
func (s state) commit(createdBy string, layer bool, epoch *time.Time) state {
	s.image.History = append(slices.Clip(s.image.History), oci.History{
		Created:    epoch,
		CreatedBy:  createdBy,
		Comment:    "buildkit.dockerfile.v0",
		EmptyLayer: !layer,
	})
	return s
}

// setConfigEnv is env with the variable set where it stands, or added.
func setConfigEnv(list []string, name, value string) []string {
	out := slices.Clone(list)
	if i := slices.IndexFunc(out, func(kv string) bool { k, _, _ := strings.Cut(kv, "="); return k == name }); i >= 0 {
		out[i] = name + "=" + value
		return out
	}
	return append(out, name+"="+value)
}

// merged is a with b's entries over it.
func merged(a, b map[string]string) map[string]string {
	out := make(map[string]string, len(a)+len(b))
	maps.Copy(out, a)
	maps.Copy(out, b)
	return out
}

func cloneImage(img oci.Image) oci.Image {
	c := &img.Config
	c.Env = slices.Clone(c.Env)
	c.Cmd = slices.Clone(c.Cmd)
	c.Entrypoint = slices.Clone(c.Entrypoint)
	c.OnBuild = slices.Clone(c.OnBuild)
	c.Shell = slices.Clone(c.Shell)
	c.ExposedPorts = maps.Clone(c.ExposedPorts)
	c.Volumes = maps.Clone(c.Volumes)
	c.Labels = maps.Clone(c.Labels)
	if c.Healthcheck != nil {
		h := *c.Healthcheck
		h.Test = slices.Clone(h.Test)
		c.Healthcheck = &h
	}
	img.History = slices.Clone(img.History)
	img.RootFS.DiffIDs = slices.Clone(img.RootFS.DiffIDs)
	return img
}

// defaultPath is what PATH is where an image does not set it.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// windows images are only put together here: no RUN is possible.
const windows = "windows"

// emptyImage is the configuration of scratch.
func emptyImage(p oci.Platform) oci.Image {
	var img oci.Image
	setPlatform(&img, p)
	img.RootFS.Type = "layers"
	img.Config.WorkingDir = "/"
	if p.OS != windows {
		img.Config.Env = []string{"PATH=" + defaultPath}
	}
	return img
}
