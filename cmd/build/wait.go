package main

import (
	"github.com/spf13/cobra"
)

func newWaitCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "wait [flags] CONTAINER...",
		Short: "Wait for containers to end and print their exit codes",
		Args:  arguments,
		RunE: func(c *cobra.Command, args []string) error {
			cs, err := g.containers()
			if err != nil {
				return err
			}
			for _, name := range args {
				code, err := cs.Wait(c.Context(), name)
				if err != nil {
					return err
				}
				if err := g.println(code); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
