package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/861fb494/build/internal/oci"
)

// historyRow is a line of `build history`, with the fields of Docker's.
type historyRow struct {
	ID           string
	CreatedAt    string
	CreatedSince string
	CreatedBy    string
	Size         string
	Comment      string
}

func newHistoryCommand(g *globals) *cobra.Command {
	var format string
	var quiet, whole bool
	c := &cobra.Command{
		Use:   "history [flags] IMAGE",
		Short: "Show the steps that an image was made by",
		Args:  arguments,
		RunE: func(_ *cobra.Command, args []string) error {
			p, s, err := g.printing(format)
			if err != nil {
				return err
			}
			found, err := g.lookUp(s, args[0])
			if err != nil {
				return err
			}
			one, err := readImage(s, found.Desc)
			if err != nil {
				return err
			}
			rows := historyRows(one, time.Now(), !whole)
			if quiet {
				for _, r := range rows {
					fmt.Fprintln(g.stdout, r.ID)
				}
				return nil
			}
			return printRows(g.stdout, p, []column[historyRow]{
				{"IMAGE", func(r historyRow) string { return r.ID }},
				{"CREATED", func(r historyRow) string { return r.CreatedSince }},
				{"CREATED BY", func(r historyRow) string { return r.CreatedBy }},
				{"SIZE", func(r historyRow) string { return r.Size }},
				{"COMMENT", func(r historyRow) string { return r.Comment }},
			}, rows)
		},
	}
	f := c.Flags()
	f.StringVar(&format, "format", "table", "table, json, or a Go `TEMPLATE`, such as '{{.CreatedBy}}'")
	f.BoolVarP(&quiet, "quiet", "q", false, "IDs alone")
	f.BoolVar(&whole, "no-trunc", false, "do not shorten commands and IDs")
	return c
}

// historyRows lists an image's history, the last step first.
func historyRows(i localImage, now time.Time, short bool) []historyRow {
	layers := i.manifest.Layers
	sizes := make([]int64, len(i.config.History))
	for k, h := range i.config.History {
		if !h.EmptyLayer && len(layers) > 0 {
			sizes[k], layers = layers[0].Size, layers[1:]
		}
	}
	var rows []historyRow
	for k := len(i.config.History) - 1; k >= 0; k-- {
		h := i.config.History[k]
		r := historyRow{
			ID:        "<missing>", // only the last step has an image of its own
			CreatedBy: oneLine(h.CreatedBy, short),
			Size:      units.HumanSizeWithPrecision(float64(sizes[k]), 3),
			Comment:   h.Comment,
		}
		if k == len(i.config.History)-1 {
			r.ID = idFor(i.id, short)
		}
		var at time.Time
		if h.Created != nil {
			at = *h.Created
			r.CreatedAt = at.Format(time.RFC3339)
		}
		r.CreatedSince = since(at, now)
		rows = append(rows, r)
	}
	return rows
}

func idFor(d oci.Digest, short bool) string {
	if short {
		return shortID(d)
	}
	return d.String()
}

// commandWidth is how much of a command Docker's history shows.
const commandWidth = 45

func oneLine(s string, short bool) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); short && len(r) > commandWidth {
		s = string(r[:commandWidth-1]) + "…"
	}
	return s
}
