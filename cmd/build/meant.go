package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/moby/buildkit/util/suggest"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// meantOption adds to an error about an unknown option the one that was meant.
func meantOption(c *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) || len(unknown.GetSpecifiedName()) < 3 {
		return err
	}
	var names []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if name, ok := suggest.Search(unknown.GetSpecifiedName(), names, true); ok {
		return fmt.Errorf("%w (did you mean --%s?)", err, name)
	}
	return err
}

// meantCommand adds to an error of the build command the command that was meant,
// where the first word is no directory and nearly a command's name.
func meantCommand(args []string, err error) error {
	i := firstWord(args)
	if i < 0 || len(args[i]) < 4 || strings.HasPrefix(args[i], "-") || strings.Contains(args[i], "/") {
		return err
	}
	if _, e := os.Lstat(args[i]); !errors.Is(e, fs.ErrNotExist) {
		return err
	}
	var names []string
	for _, row := range commands() {
		names = append(names, row.name)
	}
	if name, ok := suggest.Search(args[i], names, true); ok {
		return fmt.Errorf("%w (did you mean 'build %s'?)", err, name)
	}
	return err
}
