package main

import (
	"cmp"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/861fb494/build/cache/image/archive"
	"github.com/861fb494/build/internal/builder"
)

func newLoadCommand(g *globals) *cobra.Command {
	var input string
	var quiet bool
	c := &cobra.Command{
		Use:   "load [flags]",
		Short: "Read images from an archive",
		Long: `Read the images in an OCI layout, a directory or a tar, or in a Docker archive
(docker save). A tar may be compressed. What is in it is verified, and names are
given once all of it is here.`,
		Args: arguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if f, ok := g.stdin.(*os.File); ok && input == "-" && term.IsTerminal(int(f.Fd())) {
				return usagef("standard input is a terminal: name an archive with --input")
			}
			return g.withBuilder(c.Context(), func(b *builder.Builder) error {
				temp, err := b.Store.TempDir()
				if err != nil {
					return err
				}
				list, err := archive.Load(c.Context(), b.Images, input, archive.Options{Stdin: g.stdin, Temp: temp})
				if err != nil || quiet {
					return err
				}
				for _, n := range list {
					name := ""
					if n.HasName() {
						name = n.Ref.Familiar()
					}
					id, err := b.Images.ID(n.Desc)
					if err != nil {
						return err
					}
					fmt.Fprintln(g.stdout, "Loaded image:", cmp.Or(name, id.String()))
				}
				return nil
			})
		},
	}
	c.Flags().StringVarP(&input, "input", "i", "-", "`ARCHIVE`: a file, a directory, or - for standard input")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	return c
}
