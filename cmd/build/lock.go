package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/progress/display"
)

// updateAll is what --update means without a value: a word that nothing that can
// be locked is called.
const updateAll = "*"

func newLockCommand(g *globals) *cobra.Command {
	var f buildFlags
	var update []string
	c := &cobra.Command{
		Use:   "lock [flags] [CONTEXT]",
		Short: "Write down what the Dockerfile's tags, URLs and branches are",
		Long: `Write down, in a file beside the Dockerfile (Dockerfile.lock), what the tags, URLs
and branches are now that any stage needs. 'build --locked' builds from it.

What is in the file stays, unless nothing needs it any more: --update renews it.
CONTEXT is the working directory unless it is given. The flags are those of the
build: build arguments, platforms and contexts decide what is needed, so give
lock those that the builds have. Nothing is built.`,
		Example: `  build lock
  build lock --update=node:alpine
  build lock --check -f docker/Dockerfile .`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("lock takes one CONTEXT; %d given (what is to be renewed is written --update=NAME)", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			for _, name := range []string{"call", "locked", "pull"} {
				if c.Flags().Changed(name) {
					return usagef("lock takes no --%s; --update renews what is locked", name)
				}
			}
			if len(args) == 1 && slices.Contains(update, updateAll) {
				if _, err := os.Stat(args[0]); errors.Is(err, fs.ErrNotExist) && !strings.Contains(args[0], "://") {
					return usagef("there is no CONTEXT %[1]s; to renew what is called so write --update=%[1]s", args[0])
				}
			}
			args = append(args, ".")
			res, err := lock(c.Context(), g, &f, update, args[0])
			if err != nil {
				return failed(g.stderr, display.Quiet(g.stderr), err)
			}
			printLock(g.stdout, res, f.check)
			if f.check && (res.Made || len(res.Changes) > 0) {
				return exitStatus(exitFailure)
			}
			return nil
		},
		ValidArgsFunction: completeContext,
	}
	f.declareAgain(c.Flags())
	c.Flags().StringArrayVar(&update, "update", nil, "renew what is called `NAME`: an image, a URL, a repository, several with commas; without a name, all (repeatable)")
	c.Flags().Lookup("update").NoOptDefVal = updateAll
	check := c.Flags().Lookup("check")
	check.Usage, check.Annotations = "write nothing, and fail if the file would have other entries", nil
	return c
}

func lock(ctx context.Context, g *globals, f *buildFlags, update []string, dir string) (res builder.LockResult, err error) {
	o, err := f.options(dir)
	if err != nil {
		return res, &usageError{err: err}
	}
	request := o.request(g)
	b, err := g.open(ctx, o.Driver, o.Steps.OCIRuntime)
	if err != nil {
		return res, err
	}
	res, err = b.Lock(ctx, request, builder.LockOptions{
		Update: len(update) > 0, Names: updateNames(update), DryRun: f.check,
	})
	return res, errors.Join(err, b.Close(ctx))
}

// updateNames reads the values of --update. A comma may also be a URL's.
func updateNames(values []string) []string {
	var names []string
	for _, v := range values {
		if v == updateAll {
			return nil
		}
		if strings.Contains(v, "://") {
			names = append(names, v)
			continue
		}
		names = append(names, strings.Split(v, ",")...)
	}
	return names
}

// printLock prints a line for each entry that is not as it was, and one for the
// file.
func printLock(w io.Writer, r builder.LockResult, check bool) {
	for _, c := range r.Changes {
		switch {
		case c.Was == "":
			fmt.Fprintf(w, "+ %s %s", c.Key, c.Is)
		case c.Is == "":
			fmt.Fprintf(w, "- %s %s", c.Key, c.Was)
		default:
			fmt.Fprintf(w, "~ %s %s -> %s", c.Key, c.Was, c.Is)
		}
		if c.Position != "" && c.Is != "" {
			fmt.Fprintf(w, " (%s)", c.Position)
		}
		fmt.Fprintln(w)
	}
	entries := fmt.Sprintf("%d entries", r.Entries)
	if r.Entries == 1 {
		entries = "1 entry"
	}
	switch {
	case check && r.Made:
		fmt.Fprintf(w, "%s is missing: 'build lock' writes it\n", r.Name)
	case check && len(r.Changes) > 0:
		fmt.Fprintf(w, "%s is not up to date\n", r.Name)
	case r.Written && !check:
		fmt.Fprintf(w, "Wrote %s: %s\n", r.Name, entries)
	default:
		fmt.Fprintf(w, "%s is up to date: %s\n", r.Name, entries)
	}
}
