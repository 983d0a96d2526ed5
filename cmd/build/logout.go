package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/861fb494/build/internal/registry"
)

func newLogoutCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "logout [flags] [REGISTRY]",
		Short: "Log out from a registry",
		Long: `Remove the credentials for a registry, docker.io or the one that is named, from
where login stored them.`,
		Args: arguments,
		RunE: func(c *cobra.Command, args []string) error {
			host, err := registry.ParseHost(strings.Join(args, ""))
			if err != nil {
				return usagef("%w", err)
			}
			err = registry.DefaultCredentials().Erase(c.Context(), host)
			if errors.Is(err, registry.ErrNotFound) {
				_, err = fmt.Fprintf(g.stdout, "Not logged in to %s\n", host)
				return err
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(g.stdout, "Logged out from %s\n", host)
			return err
		},
	}
}
