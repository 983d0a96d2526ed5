package main

import (
	"fmt"
	"strings"

	"github.com/861fb494/build/internal/bench/chart"
)

// picture draws the report as SVG.
func (r Report) picture() []byte {
	if len(r.Curves) > 0 {
		return r.drawCurves()
	}
	b := chart.Bars{Title: "Time of a build, " + r.Machine.short()}
	for _, is := range r.Builders {
		b.Series = append(b.Series, is.Title)
	}
	for _, result := range r.Results {
		if result.Layers > 0 {
			continue // its times say nothing
		}
		g := chart.Group{Name: result.Name, Note: result.Title}
		for series, is := range r.Builders {
			for _, e := range result.Entries {
				if e.Builder != is.Name {
					continue
				}
				bar := chart.Bar{Series: series, Text: "failed"}
				if e.Failure == "" && len(e.Samples) > 0 {
					bar.Value = median(e.values(wall))
					bar.Text = seconds(bar.Value)
				}
				if ratio := result.ratio(is.Name); ratio > 0 && !is.ours() {
					bar.Text += fmt.Sprintf(", build takes %s of it", fraction(ratio))
				}
				g.Bars = append(g.Bars, bar)
			}
		}
		b.Groups = append(b.Groups, g)
	}
	return b.SVG()
}

// short leaves out what a picture has no room for.
func (m Machine) short() string {
	name, _, _ := strings.Cut(m.CPU, " with")
	return fmt.Sprintf("%s, %d cores, %s", name, m.Cores, m.FileSystem)
}

// ours says whether it is build.
func (b Builder) ours() bool { return b.Name == "build" || strings.HasPrefix(b.Name, "build-") }

// seconds writes a time with three digits: 9.41 ms, 1.08 s.
func seconds(s float64) string {
	if s < 0.9995 {
		return digits(s*1e3) + " ms"
	}
	return digits(s) + " s"
}

// digits writes a number above 0 with three digits, and all those before its
// point.
func digits(v float64) string {
	switch {
	case v < 9.995:
		return fmt.Sprintf("%.2f", v)
	case v < 99.95:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// fraction writes a ratio below 1 as 1/6.4.
func fraction(ratio float64) string {
	if ratio < 0.95 {
		return fmt.Sprintf("1/%.1f", 1/ratio)
	}
	return fmt.Sprintf("%.2f", ratio)
}
