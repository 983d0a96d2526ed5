package main

import (
	"github.com/spf13/cobra"

	"github.com/861fb494/build/internal/builder"
)

func newRmCommand(g *globals) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "rm [flags] CONTAINER...",
		Short: "Remove containers",
		Args:  arguments,
		RunE: func(c *cobra.Command, args []string) error {
			return g.withBuilder(c.Context(), func(b *builder.Builder) error {
				cs, err := g.runnable(b)
				if err != nil {
					return err
				}
				return g.forEach(args, func(name string) error { return cs.Remove(c.Context(), name, force) })
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "kill those that run")
	return c
}
