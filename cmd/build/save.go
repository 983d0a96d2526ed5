package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/exporter"
	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
)

func newSaveCommand(g *globals) *cobra.Command {
	var output, format, platform string
	var compression compressionFlags
	var quiet bool
	c := &cobra.Command{
		Use:   "save [flags] IMAGE...",
		Short: "Write images to an archive or a directory",
		Long: `Write images, whole, to an archive or a directory.

An OUTPUT that ends in .tar, or standard output, becomes a tar that is an OCI
layout as well as a Docker archive. Any other is a directory with an OCI layout;
one that is there is added to.`,
		Example: `  build save -o layout web           # skopeo copy oci:layout …
  build save -o web.tar web          # docker load -i web.tar
  build save web | ssh host docker load`,
		Args: arguments,
		RunE: func(c *cobra.Command, args []string) error {
			out, err := saveOutput(output, format)
			if err != nil {
				return err
			}
			if f, ok := g.stdout.(*os.File); ok && out.Dest == "-" && term.IsTerminal(int(f.Fd())) {
				return usagef("standard output is a terminal: name a file or directory with --output")
			}
			for k, v := range compression.attrs() {
				out.Attrs[k] = v
			}
			return g.withBuilder(c.Context(), func(b *builder.Builder) error {
				list, err := g.storedImages(b.Images, args, platform)
				if err != nil {
					return err
				}
				return g.withProgress(quiet || out.Dest == "-", "save to "+out.Dest, func(sink progress.Sink, step progress.Step) error {
					_, err := saveImages(c.Context(), b, list, out, exporter.Options{Sink: sink, Step: step, Stdout: g.stdout})
					return err
				})
			})
		},
	}
	f := c.Flags()
	f.StringVarP(&output, "output", "o", "-", "`OUTPUT`: a directory, a file, or - for standard output")
	f.StringVar(&format, "format", "", "`kind` of output, whatever OUTPUT is called: oci-dir, oci (a tar) or docker (a tar)")
	f.StringVar(&platform, "platform", "", "of images for several: `OS/ARCH[/VARIANT]` alone")
	f.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	compression.declare(f)
	return c
}

// saveOutput chooses what dest is to be.
func saveOutput(dest, format string) (exporter.Output, error) {
	out := exporter.Output{Dest: dest, Attrs: map[string]string{}}
	if format == "" {
		format = "oci-dir"
		st, err := os.Stat(dest)
		isDir := err == nil && st.IsDir()
		isOther := err == nil && !st.IsDir()
		if dest == "-" || isOther || !isDir && strings.EqualFold(filepath.Ext(dest), ".tar") {
			format = "docker"
		}
	}
	switch format {
	case "oci-dir":
		out.Type = exporter.TypeOCI
		out.Attrs["tar"] = "false"
	case "oci", "oci-archive":
		out.Type = exporter.TypeOCI
	case "docker", "docker-archive":
		out.Type = exporter.TypeDocker
	default:
		return out, usagef("--format %q: want oci-dir, oci or docker", format)
	}
	return out, nil
}

// storedImages looks up what the user names. Names of one image become one
// image with several names.
func (g *globals) storedImages(s *image.Store, args []string, platform string) ([]exporter.Stored, error) {
	var list []exporter.Stored
	at := map[oci.Digest]int{}
	for _, name := range args {
		found, err := g.lookUpFor(s, name, platform)
		if err != nil {
			return nil, err
		}
		i, ok := at[found.Desc.Digest]
		if !ok {
			i = len(list)
			at[found.Desc.Digest] = i
			list = append(list, exporter.Stored{Desc: found.Desc})
		}
		if found.Ref.Path != "" {
			list[i].Names = append(list[i].Names, found.Ref)
		}
	}
	return list, nil
}
