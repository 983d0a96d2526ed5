package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"

	"github.com/861fb494/build/cache/image"
)

// printer is what --format asks for.
type printer struct {
	table bool
	tmpl  *template.Template // nil: JSON, or a table
}

// newPrinter reads the value of --format: "table", "json", or a template.
func newPrinter(format string) (printer, error) {
	switch format {
	case "", "table":
		return printer{table: true}, nil
	case "json", "{{json .}}":
		return printer{}, nil
	}
	t, err := template.New("").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			data, err := json.Marshal(v)
			return string(data), err
		},
		"join": func(list []string, by string) string { return strings.Join(list, by) },
	}).Parse(format)
	if err != nil {
		return printer{}, usagef("--format: %w", err)
	}
	return printer{tmpl: t}, nil
}

// printing is what a command that shows images begins with.
func (g *globals) printing(format string) (printer, *image.Store, error) {
	p, err := newPrinter(format)
	if err != nil {
		return p, nil, err
	}
	s, err := g.images()
	return p, s, err
}

// print writes one thing as a line of JSON or by the template.
func (p printer) print(w io.Writer, v any) error {
	if p.tmpl == nil {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return e.Encode(v)
	}
	if err := p.tmpl.Execute(w, v); err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	_, err := fmt.Fprintln(w)
	return err
}

// column is one of a table: its title, and the cell of a row.
type column[R any] struct {
	title string
	cell  func(R) string
}

// printRows writes rows as p says.
func printRows[R any](w io.Writer, p printer, columns []column[R], rows []R) error {
	if !p.table {
		for _, r := range rows {
			if err := p.print(w, r); err != nil {
				return err
			}
		}
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	line := func(cell func(column[R]) string) {
		for i, c := range columns {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			fmt.Fprint(t, cell(c))
		}
		fmt.Fprintln(t)
	}
	line(func(c column[R]) string { return c.title })
	for _, r := range rows {
		line(func(c column[R]) string { return c.cell(r) })
	}
	return t.Flush()
}
