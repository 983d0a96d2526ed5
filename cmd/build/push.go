package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/861fb494/build/exporter"
	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
)

func newPushCommand(g *globals) *cobra.Command {
	var compression compressionFlags
	var quiet bool
	c := &cobra.Command{
		Use:   "push [flags] IMAGE [DESTINATION]",
		Short: "Upload an image to a registry",
		Long: `Upload an image to a registry, under its name or as DESTINATION.

Layers built here are compressed, and layers that the registry has are not
sent. Pulled layers go out as they came.`,
		Example: `  build push registry.example/web
  build push web registry.example/team/web:1.2`,
		Args: arguments,
		RunE: func(c *cobra.Command, args []string) error {
			return g.withBuilder(c.Context(), func(b *builder.Builder) error {
				found, err := g.lookUp(b.Images, args[0])
				if err != nil {
					return err
				}
				to := found.Ref
				if len(args) == 2 {
					if to, err = oci.ParseReference(args[1]); err != nil {
						return err
					}
				}
				if to.Path == "" {
					return usagef("push %s: an ID says not where to: give a DESTINATION", args[0])
				}
				out := exporter.Output{Type: exporter.TypeRegistry, Attrs: compression.attrs()}
				list := []exporter.Stored{{Desc: found.Desc, Names: []oci.Reference{to}}}
				var d oci.Descriptor
				err = g.withProgress(quiet, "push "+to.Familiar(), func(sink progress.Sink, step progress.Step) (err error) {
					d, err = saveImages(c.Context(), b, list, out, exporter.Options{Sink: sink, Step: step})
					return err
				})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(g.stdout, "%s@%s\n", to.Repository(), d.Digest)
				return err
			})
		},
	}
	compression.declare(c.Flags())
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}
