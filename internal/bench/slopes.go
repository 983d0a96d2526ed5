package main

import (
	"fmt"
	"math"
	"strings"

	"github.com/861fb494/build/internal/bench/chart"
)

// growing is a series by sizes; what failed is left out.
type growing struct {
	sizes      []float64
	times, cpu []float64 // seconds
	memory     []float64 // MB
}

func (s CurveSeries) grows() (g growing) {
	for _, p := range s.Points {
		if p.Entry.Failure != "" || len(p.Entry.Samples) == 0 {
			continue
		}
		g.sizes = append(g.sizes, float64(p.Size))
		g.times = append(g.times, median(p.Entry.values(wall)))
		g.cpu = append(g.cpu, median(p.Entry.values(cpu)))
		g.memory = append(g.memory, median(p.Entry.values(func(s Sample) float64 { return float64(s.Client + s.Daemon) }))/1e6)
	}
	return g
}

// growth tells the slopes in a line.
func (s CurveSeries) growth(unit string) string {
	g := s.grows()
	if len(g.sizes) < 2 {
		return "too few sizes for a slope"
	}
	t, c, m := fitted(g.sizes, g.times), fitted(g.sizes, g.cpu), fitted(g.sizes, g.memory)
	return fmt.Sprintf("time grows with the power %.2f of the %s (%.2f at the end; %s each): %s; CPU with %.2f; memory with %.2f (%s each)",
		t.exponent, unit, t.last, small(t.each, "s"), t.verdict(), c.exponent, m.exponent, small(m.each*1e6, "bytes"))
}

func (f fit) verdict() string {
	if f.linear() {
		return "linear or better"
	}
	return "worse than linear"
}

// small writes what one more costs: 31.2 µs, 0.21 s, 310 bytes; a negative one
// too, which is noise.
func small(v float64, unit string) string {
	switch size := math.Abs(v); {
	case unit == "bytes" && size >= 1e6:
		return fmt.Sprintf("%.1f MB", v/1e6)
	case unit == "bytes" && size >= 1e4:
		return fmt.Sprintf("%.0f kB", v/1e3)
	case unit == "bytes":
		return fmt.Sprintf("%.0f bytes", v)
	case size < 1e-3:
		return fmt.Sprintf("%.3g µs", v*1e6)
	case size < 1:
		return fmt.Sprintf("%.3g ms", v*1e3)
	}
	return fmt.Sprintf("%.3g s", v)
}

// slopes is the curves' Markdown.
func (r Report) slopes() string {
	var t strings.Builder
	t.WriteString(r.origin())
	t.WriteString("\nEach point is the median of " + plural(r.Rounds, "build") + ". A slope is the exponent of a power of the size, fitted to all points; \"at the end\" is the one between the two largest sizes, \"one more\" what a straight line through the points gains with each. Up to 1.1, which is what noise makes of 1, a slope counts as linear.\n\n")
	row(&t, "curve", "", "builder", "sizes", "time", "slope", "at the end", "one more", "", "slope of CPU time", "memory, MB", "slope", "one more")
	row(&t, rule(13)...)
	for _, c := range r.Curves {
		for _, s := range c.Series {
			g := s.grows()
			if len(g.sizes) < 2 {
				row(&t, c.Title, s.Phase, s.Builder, "failed", "", "", "", "", "", "", "", "", "")
				continue
			}
			i := len(g.sizes) - 1
			tf, cf, mf := fitted(g.sizes, g.times), fitted(g.sizes, g.cpu), fitted(g.sizes, g.memory)
			row(&t, c.Title, s.Phase, s.Builder, fmt.Sprintf("%.0f – %.0f %s", g.sizes[0], g.sizes[i], c.Unit),
				seconds(g.times[0])+" – "+seconds(g.times[i]), fmt.Sprintf("%.2f", tf.exponent), fmt.Sprintf("%.2f", tf.last), small(tf.each, "s"), tf.verdict(),
				fmt.Sprintf("%.2f", cf.exponent), fmt.Sprintf("%.0f – %.0f", g.memory[0], g.memory[i]), fmt.Sprintf("%.2f", mf.exponent), small(mf.each*1e6, "bytes"))
		}
	}
	return t.String()
}

// drawCurves draws each curve's time and memory side by side.
func (r Report) drawCurves() []byte {
	var panels []chart.Lines
	for _, c := range r.Curves {
		time := chart.Lines{Title: c.Title + ": time", X: c.Unit, Y: "seconds"}
		memory := chart.Lines{Title: c.Title + ": peak memory", X: c.Unit, Y: "MB"}
		for _, s := range c.Series {
			name := s.Phase
			if s.Builder != "build" {
				name += ", " + s.Builder
			}
			g := s.grows()
			a, b := chart.Series{Name: name}, chart.Series{Name: name}
			if f := fitted(g.sizes, g.times); len(g.sizes) > 1 {
				a.Name += fmt.Sprintf(" (slope %.2f)", f.exponent)
			}
			for i, n := range g.sizes {
				a.Points = append(a.Points, chart.Point{X: n, Y: g.times[i]})
				b.Points = append(b.Points, chart.Point{X: n, Y: g.memory[i]})
			}
			time.Series, memory.Series = append(time.Series, a), append(memory.Series, b)
		}
		panels = append(panels, time, memory)
	}
	return chart.Panels("How build grows, "+r.Machine.short(), 2, panels)
}
