package dockerfile

import (
	"path"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"github.com/861fb494/build/llb"
)

// workdir sets the directory and makes it. The root needs no making, and then
// there is no layer.
func (x *step) workdir(s state, c *instructions.WorkdirCommand) (state, error) {
	x.checkWorkdir(s, c.Path)
	s.workdirSet = true
	dir := joinWorkdir(s.image.Config.WorkingDir, c.Path)
	s.image.Config.WorkingDir = dir
	s.dir = cleanDir(dir)
	if dir == "/" {
		return s.commit("WORKDIR "+dir, false, x.epoch), nil
	}
	mkdir := llb.Mkdir{Path: s.dir, Mode: 0o755, Owner: llb.Owner(s.image.Config.User)}
	name := x.numbered(s, x.title(x.lex, s.env, c.String()))
	s.root = x.node(llb.File{Actions: []llb.Action{mkdir}}, llb.Meta{Name: name}, s.root)
	return s.commit("WORKDIR "+dir, true, x.epoch), nil
}

// joinWorkdir is wd seen from current. An absolute wd stays as it is written,
// trailing slash and all.
func joinWorkdir(current, wd string) string {
	if wd == "" {
		wd = current
	}
	if path.IsAbs(wd) {
		return wd
	}
	return path.Join("/", current, wd)
}

// cleanDir is where a working directory is.
func cleanDir(wd string) string { return path.Join("/", wd) }
