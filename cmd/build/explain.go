package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/progress/display"
)

func newExplainCommand(g *globals) *cobra.Command {
	var f buildFlags
	var last bool
	var format string
	c := &cobra.Command{
		Use:   "explain [flags] CONTEXT",
		Short: "Say which steps of a build are cached, which are not, and why",
		Long: `Say which steps of a build are cached, which are not, and why. Nothing is run.
The flags are those of the build, so that a command line for it can be explained.

With --last, say what the last build did instead. A hint tells of files that have
a step run again and again, and what line in .dockerignore would help.`,
		Example: `  build explain .
  build explain --format json -f docker/Dockerfile .
  build explain --last`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case last && len(args) > 0:
				return errors.New("--last is of whatever was built last: leave CONTEXT out")
			case !last && len(args) != 1:
				return fmt.Errorf("explain needs one CONTEXT, such as \".\"; %d given", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if format != "text" && format != "json" {
				return usagef("--format %q: want text or json", format)
			}
			p, err := explain(c.Context(), g, &f, last, args)
			if err != nil {
				return failed(g.stderr, display.Quiet(g.stderr), err)
			}
			if format == "json" {
				e := json.NewEncoder(g.stdout)
				e.SetIndent("", "  ")
				return e.Encode(p)
			}
			return printPlan(g.stdout, p)
		},
		ValidArgsFunction: completeContext,
	}
	f.declareAgain(c.Flags())
	c.Flags().BoolVar(&last, "last", false, "what the last build did")
	c.Flags().StringVar(&format, "format", "text", "print it as `text|json`")
	return c
}

func explain(ctx context.Context, g *globals, f *buildFlags, last bool, args []string) (p builder.Plan, err error) {
	if last {
		err := g.withBuilder(ctx, func(b *builder.Builder) (err error) {
			p, err = b.Last()
			return err
		})
		return p, err
	}
	o, err := f.options(args[0])
	if err != nil {
		return p, &usageError{err: err}
	}
	request := o.request(g)
	b, err := g.open(ctx, o.Driver, o.Steps.OCIRuntime)
	if err != nil {
		return p, err
	}
	p, err = b.Explain(ctx, request)
	return p, errors.Join(err, b.Close(ctx))
}

// printPlan prints a line a step, and what it comes to.
func printPlan(w io.Writer, p builder.Plan) error {
	if !p.Time.IsZero() {
		fmt.Fprintf(w, "%s of %s, built %s\n\n", p.Dockerfile, p.Context, p.Time.Local().Format(time.DateTime))
	}
	width := 0
	for _, s := range p.Steps {
		width = max(width, len(s.Position))
	}
	for _, s := range p.Steps {
		name := s.Name
		if s.Platform != "" && severalPlatforms(p) {
			name = "[" + s.Platform + "] " + name
		}
		fmt.Fprintf(w, "%-*s  %-7s  %s\n", width, s.Position, s.Status, display.OneLine(name))
		if s.Why != "" && s.Status != builder.StepCached {
			fmt.Fprintf(w, "%*s  %7s  └─ %s\n", width, "", "", display.OneLine(s.Why))
		}
	}
	if len(p.Hints) > 0 {
		fmt.Fprintln(w)
	}
	for _, h := range p.Hints {
		fmt.Fprintln(w, display.Hint(h.Position, h.String()))
	}
	n := p.Runs()
	switch {
	case !p.Time.IsZero():
		_, err := fmt.Fprintf(w, "\n%s, %s cached\n", counted(len(p.Steps)), were(len(p.Steps)-n, "was", "were"))
		return err
	case n == 0 && len(p.Steps) == 1:
		_, err := fmt.Fprint(w, "\nthe one step is cached\n")
		return err
	case n == 0:
		_, err := fmt.Fprintf(w, "\nall %d steps are cached\n", len(p.Steps))
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s, %s cached\n", counted(len(p.Steps)), were(len(p.Steps)-n, "is", "are"))
	return err
}

func counted(steps int) string {
	if steps == 1 {
		return "1 step"
	}
	return fmt.Sprintf("%d steps", steps)
}

func were(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, several)
}

func severalPlatforms(p builder.Plan) bool {
	for _, s := range p.Steps {
		if s.Platform != p.Steps[0].Platform {
			return true
		}
	}
	return false
}
