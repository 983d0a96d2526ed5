package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/internal/progress/display"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
)

// callOption is a --call: what is told of a Dockerfile instead of building it.
type callOption struct {
	Name         string // builder.CallCheck, CallOutline or CallTargets; "": build
	JSON         bool
	IgnoreStatus bool // exit with 0 though a check found mistakes
}

// parseCall reads "NAME[,format=json][,ignorestatus=true]" as docker buildx does.
func parseCall(value string) (callOption, error) {
	var c callOption
	names := []string{"build", builder.CallCheck, builder.CallOutline, builder.CallTargets}
	for i, field := range strings.Split(value, ",") {
		key, v, pair := strings.Cut(field, "=")
		switch {
		case i == 0 && field == "lint": // what check was called first
			c.Name = builder.CallCheck
		case i == 0 && slices.Contains(names, field):
			c.Name = field
		case i == 0:
			return c, fmt.Errorf("--call %q: want one of %s", field, strings.Join(names, ", "))
		case key == "format" && (v == "json" || v == "text"):
			c.JSON = v == "json"
		case key == "format":
			return c, fmt.Errorf("--call: format %q: want json or text", v)
		case key == "ignorestatus":
			b, err := strconv.ParseBool(v)
			if err != nil && pair {
				return c, fmt.Errorf("--call: ignorestatus=%s: want true or false", v)
			}
			c.IgnoreStatus = b || !pair
		default:
			return c, fmt.Errorf("--call: %q is not known: want format=json or ignorestatus=true", field)
		}
	}
	if c.Name == "build" {
		c = callOption{}
	}
	return c, nil
}

// runCall prints what is to be told of the Dockerfile.
func runCall(ctx context.Context, g *globals, b *builder.Builder, r builder.Request, c callOption) error {
	res, err := b.Build(ctx, r)
	if c.Name == builder.CallCheck {
		return c.findings(g, res, err)
	}
	if err != nil {
		return failed(g.stderr, display.Quiet(g.stderr), err)
	}
	switch {
	case c.JSON && c.Name == builder.CallTargets:
		return printJSON(g.stdout, res.Targets)
	case c.JSON:
		return printJSON(g.stdout, res.Outline)
	case c.Name == builder.CallTargets:
		return printTargets(g.stdout, res.Targets)
	}
	return printOutline(g.stdout, res.Outline)
}

// findings prints what the linter found; findings are a failure.
func (c callOption) findings(g *globals, res *builder.Response, err error) error {
	var located *builder.BuildError
	if err != nil && (!errors.As(err, &located) || errors.Is(err, context.Canceled)) {
		return err
	}
	var status error = exitStatus(exitFailure)
	if c.IgnoreStatus || err == nil && len(res.Warnings) == 0 {
		status = nil
	}
	if c.JSON {
		var cause error
		var at llb.Position
		if located != nil {
			cause, at = located.Err, located.Place
		}
		if err := printJSON(g.stdout, dockerfile.Report(res.Dockerfile, res.Warnings, cause, at)); err != nil {
			return err
		}
		return status
	}
	switch n := len(res.Warnings); {
	case n == 1:
		fmt.Fprintln(g.stdout, "Check complete, 1 warning has been found!")
	case n > 1:
		fmt.Fprintf(g.stdout, "Check complete, %d warnings have been found!\n", n)
	case err == nil:
		fmt.Fprintln(g.stdout, "Check complete, no warnings found.")
	}
	var list []progress.Warning
	for _, w := range res.Warnings {
		list = append(list, builder.Event(w))
	}
	if err := display.PrintWarnings(g.stdout, list); err != nil {
		return err
	}
	if err != nil {
		if err = failed(g.stderr, display.Quiet(g.stderr), err); !c.IgnoreStatus {
			return err
		}
	}
	return status
}

func printJSON(w io.Writer, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(data))
	return err
}

func printTargets(w io.Writer, list dockerfile.Targets) error {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprint(t, "TARGET\tDESCRIPTION\n")
	for _, target := range list.Targets {
		name := target.Name
		switch {
		case target.Default && name == "":
			name = "(default)"
		case target.Default:
			name += " (default)"
		}
		fmt.Fprintf(t, "%s\t%s\n", name, target.Description)
	}
	return t.Flush()
}

func printOutline(w io.Writer, o dockerfile.Outline) error {
	if o.Name != "" || o.Description != "" {
		rows := [][]string{{"TARGET:", cmpName(o.Name)}}
		if o.Description != "" {
			rows = append(rows, []string{"DESCRIPTION:", o.Description})
		}
		if err := printTable(w, 1, rows); err != nil {
			return err
		}
	}
	args := [][]string{{"BUILD ARG", "VALUE", "DESCRIPTION"}}
	for _, a := range o.Args {
		args = append(args, []string{a.Name, a.Value, a.Description})
	}
	tables := [][][]string{args, requirements("SECRET", o.Secrets), requirements("SSH", o.SSH)}
	for _, rows := range tables {
		if len(rows) == 1 {
			continue
		}
		if err := printTable(w, 3, rows); err != nil {
			return err
		}
	}
	return nil
}

func cmpName(name string) string {
	if name == "" {
		return "(default)"
	}
	return name
}

func requirements(title string, list []dockerfile.Requirement) [][]string {
	rows := [][]string{{title, "REQUIRED"}}
	for _, r := range list {
		required := ""
		if r.Required {
			required = "true"
		}
		rows = append(rows, []string{r.Name, required})
	}
	return rows
}

// printTable prints rows in columns and an empty line after them.
func printTable(w io.Writer, gap int, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, gap, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}
