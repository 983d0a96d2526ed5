package main

import (
	"syscall"

	"github.com/moby/sys/signal"
	"github.com/spf13/cobra"
)

func newKillCommand(g *globals) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "kill [flags] CONTAINER...",
		Short: "Send containers a signal",
		Args:  arguments,
		RunE: func(c *cobra.Command, args []string) error {
			sig, err := signal.ParseSignal(name)
			if err != nil {
				return usagef("--signal %q: %w", name, err)
			}
			cs, err := g.containers()
			if err != nil {
				return err
			}
			return g.forEach(args, func(name string) error { return cs.Kill(c.Context(), name, syscall.Signal(sig)) })
		},
	}
	c.Flags().StringVarP(&name, "signal", "s", "KILL", "`name` or number")
	return c
}
