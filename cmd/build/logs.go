package main

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/861fb494/build/internal/container"
)

func newLogsCommand(g *globals) *cobra.Command {
	var o container.LogOptions
	var tail, since string
	c := &cobra.Command{
		Use:   "logs [flags] CONTAINER",
		Short: "Print what a container has written",
		Args:  arguments,
		RunE: func(c *cobra.Command, args []string) error {
			if err := parseTail(tail, &o); err != nil {
				return err
			}
			if err := parseSince(since, &o); err != nil {
				return err
			}
			cs, err := g.containers()
			if err != nil {
				return err
			}
			return cs.Logs(c.Context(), args[0], o, g.stdout, g.stderr)
		},
	}
	f := c.Flags()
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on until the container has ended")
	f.BoolVarP(&o.Timestamps, "timestamps", "t", false, "begin each line with its time")
	f.StringVarP(&tail, "tail", "n", "all", "only the last `lines`")
	f.StringVar(&since, "since", "", "only what is newer than a `time`, as 2026-01-02T15:04:05Z or 10m ago")
	return c
}

func parseTail(s string, o *container.LogOptions) error {
	if s == "all" {
		return nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return usagef("--tail %q: want a number of lines, or all", s)
	}
	o.Lines, o.Tail = true, n
	return nil
}

func parseSince(s string, o *container.LogOptions) error {
	if s == "" {
		return nil
	}
	d, err := time.ParseDuration(s)
	if err == nil {
		o.Since = time.Now().Add(-d)
		return nil
	}
	if o.Since, err = time.Parse(time.RFC3339, s); err != nil {
		return usagef("--since %q: want a time such as 2026-01-02T15:04:05Z, or a duration such as 10m", s)
	}
	return nil
}
