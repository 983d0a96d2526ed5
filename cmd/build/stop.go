package main

import (
	"time"

	"github.com/spf13/cobra"
)

func newStopCommand(g *globals) *cobra.Command {
	var seconds int
	c := &cobra.Command{
		Use:   "stop [flags] CONTAINER...",
		Short: "Stop containers",
		Long: `Stop containers: send them their stop signal, SIGTERM unless their image names
another, and SIGKILL to those that still run after a while.`,
		Args: arguments,
	}
	c.Flags().IntVarP(&seconds, "time", "t", 0, "`seconds` before SIGKILL (default: the container's, else 10)")
	c.RunE = func(c *cobra.Command, args []string) error {
		cs, err := g.containers()
		if err != nil {
			return err
		}
		var timeout *time.Duration
		if c.Flags().Changed("time") {
			d := stopTimeout(seconds)
			timeout = &d
		}
		return g.forEach(args, func(name string) error { return cs.Stop(c.Context(), name, timeout) })
	}
	return c
}

// stopTimeout is a number of seconds; a negative one is no end.
func stopTimeout(seconds int) time.Duration {
	if seconds < 0 {
		return 100 * 365 * 24 * time.Hour
	}
	return time.Duration(seconds) * time.Second
}
