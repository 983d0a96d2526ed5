package main

import (
	"github.com/spf13/cobra"

	"github.com/861fb494/build/internal/container"
)

func newExecCommand(g *globals) *cobra.Command {
	var o container.ExecOptions
	var env []string
	var interactive bool
	c := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run a further command in a running container",
		Args:  arguments,
		RunE: func(c *cobra.Command, args []string) error {
			o.Args, o.Env = args[1:], hostEnv(env)
			cs, err := g.containers()
			if err != nil {
				return err
			}
			streams, err := g.streams(o.Terminal, interactive)
			if err != nil {
				return err
			}
			code, err := cs.Exec(c.Context(), args[0], o, streams)
			return g.exit(c.Context(), code, err)
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&o.Terminal, "tty", "t", false, "with a terminal")
	f.StringArrayVarP(&env, "env", "e", nil, "set a variable, `NAME=VALUE`, or NAME for the one here (repeatable)")
	f.StringVarP(&o.Dir, "workdir", "w", "", "working `directory`")
	f.StringVarP(&o.User, "user", "u", "", "`user[:group]`, names or numbers")
	return c
}
