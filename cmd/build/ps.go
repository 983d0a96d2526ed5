package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/861fb494/build/internal/container"
)

// psRow is a container as `build ps` shows it; the names are those that
// templates of docker ps use.
type psRow struct {
	ID        string
	Image     string
	Command   string
	CreatedAt time.Time
	Status    string // "Up 5 minutes", "Exited (1) 2 hours ago"
	State     string // "created", "running", "exited"
	Ports     string
	Names     string
}

func newPsCommand(g *globals) *cobra.Command {
	var all, quiet, whole bool
	var format string
	c := &cobra.Command{
		Use:   "ps [flags]",
		Short: "List containers",
		Args:  arguments,
		RunE: func(*cobra.Command, []string) error {
			p, err := newPrinter(format)
			if err != nil {
				return err
			}
			cs, err := g.containers()
			if err != nil {
				return err
			}
			infos, err := cs.List()
			if err != nil {
				return err
			}
			var rows []psRow
			for _, i := range infos {
				if all || i.Status == container.Running {
					rows = append(rows, newPsRow(i, whole))
				}
			}
			if !quiet {
				return printRows(g.stdout, p, psColumns(), rows)
			}
			for _, r := range rows {
				if err := g.println(r.ID); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := c.Flags()
	f.BoolVarP(&all, "all", "a", false, "also those that do not run")
	f.BoolVarP(&quiet, "quiet", "q", false, "IDs alone")
	f.BoolVar(&whole, "no-trunc", false, "do not shorten IDs and commands")
	f.StringVar(&format, "format", "table", "table, json, or a Go `TEMPLATE`, such as '{{.Names}}'")
	return c
}

func psColumns() []column[psRow] {
	return []column[psRow]{
		{"CONTAINER ID", func(r psRow) string { return r.ID }},
		{"IMAGE", func(r psRow) string { return r.Image }},
		{"COMMAND", func(r psRow) string { return r.Command }},
		{"CREATED", func(r psRow) string { return since(r.CreatedAt, time.Now()) }},
		{"STATUS", func(r psRow) string { return r.Status }},
		{"PORTS", func(r psRow) string { return r.Ports }},
		{"NAMES", func(r psRow) string { return r.Names }},
	}
}

func newPsRow(i container.Info, whole bool) psRow {
	r := psRow{
		ID: i.ID, Image: i.Image, CreatedAt: i.Created, Names: i.Name,
		State: string(i.Status), Status: psStatus(i),
	}
	command := strings.Join(i.Args, " ")
	if !whole {
		r.ID = container.ShortID(i.ID)
		if chars := []rune(command); len(chars) > 20 {
			command = string(chars[:19]) + "…"
		}
	}
	r.Command = fmt.Sprintf("%q", command)
	var ports []string
	for _, p := range i.Ports {
		ports = append(ports, p.String())
	}
	if i.Status == container.Running {
		r.Ports = strings.Join(ports, ", ")
	}
	return r
}

func psStatus(i container.Info) string {
	switch {
	case i.Status == container.Running:
		return "Up " + units.HumanDuration(time.Since(i.Started))
	case i.Lost:
		return "Exited (unknown)"
	case i.Status == container.Exited:
		return fmt.Sprintf("Exited (%d) %s", i.ExitCode, since(i.Finished, time.Now()))
	}
	return "Created"
}
