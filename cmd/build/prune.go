package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/internal/builder"
)

// pinned lists the layers that containers stand on.
func (g *globals) pinned() ([]string, error) {
	cs, err := g.containers()
	if err != nil {
		return nil, err
	}
	return cs.Pinned()
}

// keepStorage reads a size; "off" for no bound, "" for the default one.
func keepStorage(s string) (bytes int64, off bool, err error) {
	switch s {
	case "":
		return 0, false, nil
	case "off", "0":
		return 0, true, nil
	}
	bytes, err = units.RAMInBytes(s)
	if err != nil || bytes <= 0 {
		err = fmt.Errorf("%q is no size such as 20GB, nor \"off\"", s)
	}
	return bytes, false, err
}

func newPruneCommand(g *globals) *cobra.Command {
	var o cache.PruneOptions
	var keep, format string
	var filters []string
	c := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove what is no longer needed from the state directory",
		Long: `Remove the results of steps and the downloads that no image, no container and no
build that runs needs; with --all cache mounts too, and images that have had no
name for an hour. What was used longest ago goes first.

After a build this happens by itself, once a day or when the disk is nearly full,
down to BUILD_KEEP_STORAGE (such as 20GB, or "off"); by default to a fifth of the
file system, and at least 10GB. Where that is not enough, images without a name
and cache mounts go too that have not been used for a day.`,
		Example: `  build prune --keep 20GB
  build prune --older-than 168h
  build prune --all --filter type=mount`,
		Args: arguments,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if keep != "" {
				if o.Keep, err = units.RAMInBytes(keep); err != nil || o.Keep < 0 {
					return usagef("--keep %q: want a size such as 20GB", keep)
				}
				o.Keep = max(o.Keep, 1) // 0 would be no bound at all
			}
			if o.Kinds, err = pruneKinds(filters); err != nil {
				return &usageError{err: err}
			}
			if format != "text" && format != "json" {
				return usagef("--format %q: want text or json", format)
			}
			pinned, err := g.pinned()
			if err != nil {
				return err
			}
			return g.withBuilder(c.Context(), func(b *builder.Builder) error {
				err := b.Sweep(c.Context())
				r, perr := b.Prune(c.Context(), o, pinned)
				return errors.Join(err, perr, printPruned(g.stdout, r, o.DryRun, format))
			})
		},
	}
	f := c.Flags()
	f.BoolVarP(&o.All, "all", "a", false, "cache mounts and images without a name too")
	f.StringVar(&keep, "keep", "", "leave so much: a `size` such as 20GB")
	f.DurationVar(&o.OlderThan, "older-than", 0, "only what has not been used for this `time`, such as 48h")
	f.StringArrayVar(&filters, "filter", nil, "only a `type=KIND`: layer, mount or download (repeatable)")
	f.BoolVar(&o.DryRun, "dry-run", false, "say what would go, and remove nothing")
	f.StringVar(&format, "format", "text", "print it as `text|json`")
	f.BoolP("force", "f", true, "accepted and without effect: nothing is asked")
	return c
}

func pruneKinds(filters []string) ([]string, error) {
	var kinds []string
	for _, f := range filters {
		kind, ok := strings.CutPrefix(f, "type=")
		if !ok || !slices.Contains([]string{cache.KindLayer, cache.KindMount, cache.KindDownload}, kind) {
			return nil, fmt.Errorf("--filter %q: want type=layer, type=mount or type=download", f)
		}
		kinds = append(kinds, kind)
	}
	return kinds, nil
}

func printPruned(w io.Writer, r builder.PruneResult, dry bool, format string) error {
	if format == "json" {
		return printJSON(w, map[string]any{"items": r.Items, "blobs": r.Blobs.Blobs, "bytes": r.Bytes()})
	}
	for _, i := range r.Items {
		fmt.Fprintf(w, "%s\t%s\t%s\n", i.Kind, i.ID, units.HumanSize(float64(i.Size)))
	}
	verb := "Removed"
	if dry {
		verb = "Would remove"
	}
	_, err := fmt.Fprintf(w, "%s %s\n", verb, units.HumanSize(float64(r.Bytes())))
	return err
}

func newDuCommand(g *globals) *cobra.Command {
	var format string
	var verbose bool
	c := &cobra.Command{
		Use:   "du [flags]",
		Short: "Say what takes room in the state directory",
		Long: `Say what takes room in the state directory, by kind; how much of it serves
several images, containers or steps; and how much 'build prune --all' could free.
The sum is that of du(1).`,
		Args: arguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return usagef("--format %q: want text or json", format)
			}
			pinned, err := g.pinned()
			if err != nil {
				return err
			}
			return g.withBuilder(c.Context(), func(b *builder.Builder) error {
				items, err := b.Usage(c.Context(), pinned)
				if err != nil {
					return err
				}
				if format == "json" {
					return printJSON(g.stdout, items)
				}
				return printUsage(g.stdout, items, verbose)
			})
		},
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "each thing by itself")
	c.Flags().StringVar(&format, "format", "text", "print it as `text|json`")
	return c
}

func printUsage(w io.Writer, items []cache.Item, verbose bool) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	if verbose {
		fmt.Fprintln(t, "TYPE\tID\tSIZE\tSHARED\tLAST USED\tNEEDED BY")
		for _, i := range items {
			used := ""
			if !i.LastUsed.IsZero() {
				used = units.HumanDuration(time.Since(i.LastUsed)) + " ago"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", i.Kind, i.ID, units.HumanSize(float64(i.Size)), units.HumanSize(float64(i.Shared)), used, i.Needed)
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintln(t, "TYPE\tCOUNT\tSIZE\tSHARED\tRECLAIMABLE")
	var total, common, free int64
	for _, kind := range []string{cache.KindLayer, cache.KindMount, cache.KindDownload, cache.KindRecord, cache.KindImage, cache.KindOther} {
		var n int
		var size, shared, reclaimable int64
		for _, i := range items {
			if i.Kind != kind {
				continue
			}
			n++
			size += i.Size
			shared += i.Shared
			if i.Needed == "" {
				reclaimable += i.Size
			}
		}
		total, common, free = total+size, common+shared, free+reclaimable
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\n", kind, n, units.HumanSize(float64(size)), units.HumanSize(float64(shared)), units.HumanSize(float64(reclaimable)))
	}
	fmt.Fprintf(t, "total\t\t%s\t%s\t%s\n", units.HumanSize(float64(total)), units.HumanSize(float64(common)), units.HumanSize(float64(free)))
	return t.Flush()
}

func newFsckCommand(g *globals) *cobra.Command {
	var dry bool
	c := &cobra.Command{
		Use:   "fsck",
		Short: "Check all that is in the state directory",
		Long: `Read all that is in the state directory and say what is wrong with it: damaged
records, layers whose files are not what they were, blobs that are not what their
name says. What is damaged is dropped, and made or fetched anew when it is needed;
with --dry-run it is only told. The exit code is 1 if there was anything.`,
		Args: arguments,
		RunE: func(c *cobra.Command, _ []string) error {
			return g.withBuilder(c.Context(), func(b *builder.Builder) error {
				if err := b.Sweep(c.Context()); err != nil {
					return err
				}
				check := b.Mend
				if dry {
					check = b.Check
				}
				problems := check(c.Context())
				for _, p := range problems {
					fmt.Fprintln(g.stdout, p)
				}
				if n := len(problems); n > 0 {
					word := "problems"
					if n == 1 {
						word = "problem"
					}
					fmt.Fprintln(g.stdout, n, word)
					return exitStatus(exitFailure)
				}
				fmt.Fprintln(g.stdout, "no problems")
				return nil
			})
		},
	}
	c.Flags().BoolVar(&dry, "dry-run", false, "say what is wrong, and drop nothing")
	return c
}
