package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/sys/signal"

	"github.com/861fb494/build/internal/oci"
)

// The instructions of this file change the configuration only.

func (x *step) env(s state, c *instructions.EnvCommand) (state, error) {
	words := []string{"ENV"}
	for _, kv := range c.Env {
		x.checkLegacy(kv.NoDelim)
		x.checkSecret("ENV", kv.Key)
		words = append(words, kv.String())
		s = s.setEnv(kv.Key, kv.Value)
		s.image.Config.Env = setConfigEnv(s.image.Config.Env, kv.Key, kv.Value)
	}
	return s.commit(strings.Join(words, " "), false, x.epoch), nil
}

func (x *step) label(s state, c *instructions.LabelCommand) (state, error) {
	words := []string{"LABEL"}
	labels := map[string]string{}
	for _, kv := range c.Labels {
		x.checkLegacy(kv.NoDelim)
		words = append(words, kv.String())
		labels[kv.Key] = kv.Value
	}
	s.image.Config.Labels = merged(s.image.Config.Labels, labels)
	return s.commit(strings.Join(words, " "), false, x.epoch), nil
}

func (x *step) maintainer(s state, c *instructions.MaintainerCommand) (state, error) {
	s.image.Author = c.Maintainer
	return s.commit("MAINTAINER "+c.Maintainer, false, x.epoch), nil
}

// onbuild records a trigger; it has no entry in the history.
func (x *step) onbuild(s state, c *instructions.OnbuildCommand) (state, error) {
	s.image.Config.OnBuild = append(slices.Clip(s.image.Config.OnBuild), c.Expression)
	return s, nil
}

func (x *step) cmd(s state, c *instructions.CmdCommand) (state, error) {
	x.checkOnce(s.cmd)
	s.cmd = c.Location()
	args := x.commandLine(s, c.ShellDependantCmdLine)
	s.image.Config.Cmd = args
	s.image.Config.ArgsEscaped = true //nolint:staticcheck // deprecated, but written by BuildKit and read by Docker
	return s.commit(fmt.Sprintf("CMD %q", args), false, x.epoch), nil
}

// entrypoint also takes back a CMD that the base has, which was meant for the
// base's ENTRYPOINT; a CMD of this stage stays.
func (x *step) entrypoint(s state, c *instructions.EntrypointCommand) (state, error) {
	x.checkOnce(s.entrypoint)
	s.entrypoint = c.Location()
	args := x.commandLine(s, c.ShellDependantCmdLine)
	s.image.Config.Entrypoint = args
	if s.cmd == nil {
		s.image.Config.Cmd = nil
	}
	return s.commit(fmt.Sprintf("ENTRYPOINT %q", args), false, x.epoch), nil
}

func (x *step) commandLine(s state, c instructions.ShellDependantCmdLine) []string {
	if !c.PrependShell {
		return c.CmdLine
	}
	x.checkJSONArgs(s)
	return withShell(s, c.CmdLine)
}

// withShell is a command line for the shell.
func withShell(s state, args []string) []string {
	shell := s.image.Config.Shell
	if len(shell) == 0 && s.image.OS == windows {
		shell = []string{"cmd", "/S", "/C"}
	}
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clip(shell), strings.Join(args, " "))
}

func (x *step) healthcheck(s state, c *instructions.HealthCheckCommand) (state, error) {
	x.checkOnce(s.healthcheck)
	s.healthcheck = c.Location()
	h := oci.Healthcheck(*c.Health)
	s.image.Config.Healthcheck = &h
	return s.commit(fmt.Sprintf("HEALTHCHECK %+v", h), false, x.epoch), nil
}

func (x *step) shell(s state, c *instructions.ShellCommand) (state, error) {
	s.image.Config.Shell = c.Shell
	return s.commit(fmt.Sprintf("SHELL %v", c.Shell), false, x.epoch), nil
}

func (x *step) stopsignal(s state, c *instructions.StopSignalCommand) (state, error) {
	if _, err := signal.ParseSignal(c.Signal); err != nil {
		return s, err
	}
	s.image.Config.StopSignal = c.Signal
	return s.commit("STOPSIGNAL "+c.Signal, false, x.epoch), nil
}

func (x *step) user(s state, c *instructions.UserCommand) (state, error) {
	s.image.Config.User = c.User
	return s.commit("USER "+c.User, false, x.epoch), nil
}

func (x *step) volume(s state, c *instructions.VolumeCommand) (state, error) {
	volumes := maps.Clone(s.image.Config.Volumes)
	if volumes == nil {
		volumes = map[string]struct{}{}
	}
	for _, v := range c.Volumes {
		if v == "" {
			return s, errors.New("VOLUME specified can not be an empty string")
		}
		volumes[v] = struct{}{}
	}
	s.image.Config.Volumes = volumes
	return s.commit(fmt.Sprintf("VOLUME %v", c.Volumes), false, x.epoch), nil
}
