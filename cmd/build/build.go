package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func newBuildCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "build [flags] CONTEXT",
		Short: "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile, without a daemon.

CONTEXT is a directory, and its Dockerfile the one named Dockerfile unless
--file names another. A directory called like a command is written ./NAME.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("build needs one CONTEXT, such as \".\"; %d given", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return runBuild(c.Context(), g, args)
		},
	}
}

func runBuild(context.Context, *globals, []string) error {
	return errors.New("this binary was made without a builder")
}
