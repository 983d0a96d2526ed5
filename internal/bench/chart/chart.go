// Package chart draws bars and curves as SVG that needs nothing else.
package chart

import (
	"bytes"
	"fmt"
	"html"
	"strconv"
	"strings"
)

// colors of the series, in their order; they repeat.
func color(series int) string {
	palette := [...]string{"#2563eb", "#93b4f5", "#d97706", "#059669", "#9333ea", "#db2777"}
	return palette[series%len(palette)]
}

// canvas collects elements. Lengths are in pixels.
type canvas struct{ bytes.Buffer }

func (c *canvas) open(width, height float64, title string) {
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %s %s" width="%[1]s" height="%[2]s" role="img" font-family="system-ui, sans-serif" font-size="12">`, number(width), number(height))
	fmt.Fprintf(c, "\n<title>%s</title>\n", html.EscapeString(title))
	c.WriteString("<style>text{fill:#1f2937}.faint{fill:#6b7280}.grid{stroke:#e5e7eb}.back{fill:#ffffff}" +
		"@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.faint{fill:#9ca3af}.grid{stroke:#374151}.back{fill:#111827}}</style>\n")
	fmt.Fprintf(c, "<rect class=\"back\" width=\"%s\" height=\"%s\"/>\n", number(width), number(height))
}

func (c *canvas) close() []byte {
	c.WriteString("</svg>\n")
	return c.Bytes()
}

// text writes at a baseline's start, middle or end. Attributes are "" or begin
// with a space.
func (c *canvas) text(x, y float64, anchor, attributes, text string) {
	fmt.Fprintf(c, "<text x=\"%s\" y=\"%s\" text-anchor=\"%s\"%s>%s</text>\n", number(x), number(y), anchor, attributes, html.EscapeString(text))
}

func (c *canvas) rect(x, y, width, height float64, fill string) {
	fmt.Fprintf(c, "<rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" fill=\"%s\"/>\n", number(x), number(y), number(width), number(height), fill)
}

func (c *canvas) grid(x1, y1, x2, y2 float64) {
	fmt.Fprintf(c, "<line class=\"grid\" x1=\"%s\" y1=\"%s\" x2=\"%s\" y2=\"%s\"/>\n", number(x1), number(y1), number(x2), number(y2))
}

// legend writes the series' names in a row.
func (c *canvas) legend(x, y float64, names []string) {
	for i, name := range names {
		c.rect(x, y-9, 10, 10, color(i))
		c.text(x+15, y, "start", "", name)
		x += 35 + 6.5*float64(len(name))
	}
}

// number is a length with a tenth of a pixel.
func number(x float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(x, 'f', 1, 64), ".0")
}
