package dockerfile

import (
	"path"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/861fb494/build/llb"
)

// workdir sets the directory and makes it. The root needs no making, and then
// there is no layer.
func (x *step) workdir(s state, c *instructions.WorkdirCommand) (state, error) {
	x.checkWorkdir(s, c.Path)
	s.workdirSet = true
	config := &s.image.Config
	config.WorkingDir, s.dir = joinWorkdir(x.stage.platform.OS, config.WorkingDir, c.Path)
	entry := "WORKDIR " + toSlash(x.stage.platform.OS, config.WorkingDir)
	if s.dir == "/" {
		return s.commit(entry, false, x.epoch), nil
	}
	mkdir := llb.Mkdir{Path: s.dir, Mode: 0o755, Owner: llb.Owner(config.User)}
	name := x.numbered(s, x.title(x.lex, s.env, c.String()))
	s.root = x.node(llb.File{Actions: []llb.Action{mkdir}}, llb.Meta{Name: name}, s.root)
	return s.commit(entry, true, x.epoch), nil
}

// joinWorkdir is wd seen from current: as the configuration has it, and as a
// clean path. An absolute wd stays as it is written, trailing slash and all.
func joinWorkdir(os, current, wd string) (config, dir string) {
	current, wd = toSlash(os, current), toSlash(os, wd)
	if wd == "" {
		wd = current
	}
	if !path.IsAbs(wd) {
		wd = path.Join("/", current, wd)
	}
	dir = path.Join("/", wd)
	if os == windows {
		wd = strings.ReplaceAll(dir, "/", `\`)
	}
	return wd, dir
}

// toSlash is a path without what only Windows has.
func toSlash(os, p string) string {
	if os != windows {
		return p
	}
	p = strings.ReplaceAll(p, `\`, "/")
	if len(p) >= 2 && p[1] == ':' && strings.EqualFold(p[:1], "c") {
		p = p[2:]
	}
	return p
}
