package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	bkparser "github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/861fb494/build/llb"
)

// pipes is where the file of an inline script with a "#!" line is mounted.
const pipes = "/dev/pipes"

func (x *step) run(s state, c *instructions.RunCommand) (state, error) {
	inputs := []*llb.Node{s.root}
	op := llb.Exec{
		Env:          slices.Clone(s.env),
		Dir:          s.dir,
		User:         s.image.Config.User,
		Hostname:     x.opts.Hostname,
		Network:      x.network(c),
		Hosts:        x.opts.Hosts,
		Ulimits:      x.opts.Ulimits,
		ShmSize:      x.opts.ShmSize,
		CgroupParent: x.opts.CgroupParent,
		Devices:      x.devices(),
		TTL:          int64(x.Run.TTL.Seconds()),
	}
	if instructions.GetSecurity(c) == instructions.SecurityInsecure {
		op.Security = llb.SecurityInsecure
	}
	args, script, err := runArgs(c)
	if err != nil {
		return s, err
	}
	if len(args) == 0 && !c.PrependShell {
		return s, errors.New("RUN needs a command")
	}
	if script != nil {
		inputs = append(inputs, x.internal("preparing inline document",
			llb.File{Actions: []llb.Action{*script}}, x.scratch()))
		op.Mounts = append(op.Mounts, llb.Mount{Type: llb.MountBind, Target: pipes, Input: len(inputs) - 1, ReadOnly: true})
	}
	if c.PrependShell {
		args = withShell(s, args)
	}
	op.Args = args
	if op, inputs, err = x.mounts(s, c, op, inputs); err != nil {
		return s, err
	}
	s.root = x.node(op, llb.Meta{
		Name:     x.numbered(s, x.runTitle(s, c)),
		NoCache:  x.stage.noCache || x.Run.NoCache,
		Timeout:  x.Run.Timeout,
		ProxyEnv: x.proxy,
		// The process sees them all.
		Variables: s.variables(),
	}, inputs...)
	return s.commit("RUN "+history(s, args)+" # buildkit", true, x.epoch), nil
}

// runArgs is the command line without the shell's part. Inline documents are
// put into it, or come back as a file to be run.
func runArgs(c *instructions.RunCommand) (args []string, script *llb.Mkfile, err error) {
	args = c.CmdLine
	if len(c.Files) == 0 {
		return args, nil, nil
	}
	if len(args) != 1 || !c.PrependShell {
		return nil, nil, errors.New("an inline document needs a command line in the shell's form")
	}
	if bkparser.MustParseHeredoc(args[0]) == nil {
		// The shell reads the documents.
		var b strings.Builder
		b.WriteString(args[0])
		for _, f := range c.Files {
			b.WriteString("\n" + f.Data + f.Name)
		}
		return []string{b.String()}, nil, nil
	}
	// The document alone is the script, and no shell need know of documents.
	f := c.Files[0]
	data := f.Data
	if f.Chomp {
		data = bkparser.ChompHeredocContent(data)
	}
	if !strings.HasPrefix(data, "#!") {
		return []string{data}, nil, nil
	}
	name := path.Join("/", f.Name)
	return []string{pipes + name}, &llb.Mkfile{Path: name, Data: []byte(data), Mode: "0755"}, nil
}

// runTitle names the step; variables that hold secrets are masked.
func (x *step) runTitle(s state, c *instructions.RunCommand) string {
	e := s.env
	for _, m := range instructions.GetMounts(c) {
		if m.Type == instructions.MountTypeSecret && m.Env != nil {
			e = e.set(*m.Env, "****")
		}
	}
	text := c.String()
	if len(c.Files) > 0 && len(c.CmdLine) == 1 && bkparser.MustParseHeredoc(c.CmdLine[0]) != nil {
		text += " (" + firstLine(c.Files[0].Data) + ")"
	}
	lex := shell.NewLex(x.file.Escape)
	lex.RawQuotes, lex.SkipUnsetEnv = true, true
	return x.title(lex, e, text)
}

func firstLine(doc string) string {
	line, _, more := strings.Cut(strings.TrimSpace(doc), "\n")
	line = strings.TrimSuffix(line, "\r")
	if more {
		line += "..."
	}
	return line
}

// history is a command line as the history has it, with the ARGs in force.
func history(s state, args []string) string {
	var words []string
	for _, a := range s.args {
		v, ok := s.env.Get(a.Key)
		if !ok {
			v = a.ValueString()
		}
		word := a.Key + "=" + v
		if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, a.Key+"=") }); i >= 0 {
			words[i] = word
		} else {
			words = append(words, word)
		}
	}
	if len(words) > 0 {
		words = append([]string{fmt.Sprintf("|%d", len(words))}, words...)
	}
	return strings.Join(append(words, args...), " ")
}

// network is the RUN's own, or else the build's; empty is the default.
func (x *step) network(c *instructions.RunCommand) string {
	n := instructions.GetNetwork(c)
	if n == instructions.NetworkDefault {
		n = x.opts.Network
	}
	if n == llb.NetworkDefault {
		return ""
	}
	return n
}

func (x *step) devices() []llb.Device {
	out := slices.Clone(x.opts.Devices)
	for _, d := range x.Run.Devices {
		out = append(out, llb.Device{Name: d.Name, Required: d.Required})
	}
	return out
}
