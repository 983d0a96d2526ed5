package chart

import (
	"bytes"
	"encoding/xml"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the pictures in testdata anew")

// golden compares a picture with the one in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(got))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%s is no XML: %v", name, err)
		}
	}
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
	}
}

func TestBars(t *testing.T) {
	golden(t, "bars.svg", Bars{
		Title:  "Times & <ratios>",
		Series: []string{"build", "other"},
		Groups: []Group{
			{Name: "w1", Note: "nothing to do", Bars: []Bar{{0, 0.1, "0.1 s"}, {1, 0.4, "0.4 s"}}},
			{Name: "w2", Note: "it failed", Bars: []Bar{{0, 2, "2 s"}, {1, 0, "failed"}}},
			{Name: "w3", Note: "nobody was there"},
		},
	}.SVG())
}

func TestPanels(t *testing.T) {
	golden(t, "lines.svg", Panels("Curves", 2, []Lines{
		{Title: "time", X: "files", Y: "seconds", Series: []Series{
			{"new", []Point{{1000, 0.1}, {10000, 1.1}, {100000, 9}}},
			{"same", []Point{{1000, 0.02}, {10000, 0.1}, {100000, 0.8}}},
		}},
		{Title: "memory", X: "files", Y: "MB", Series: []Series{{"new", []Point{{1000, 30}, {10000, 31}}}}},
		{Title: "nothing", X: "files", Y: "MB"},
	}))
}

func TestTicks(t *testing.T) {
	for _, tt := range []struct {
		low, high float64
		want      string
	}{
		{1, 16, "1 2 5 10"},
		{1000, 100000, "1k 2k 5k 10k 20k 50k 100k"},
		{1, 1e6, "1 10 100 1k 10k 100k 1M"},
		{30, 31, "30"},
		{31, 38, "31 38"},
		{0.05, 0.4, "0.05 0.1 0.2"},
	} {
		a := axis{0, 100, tt.low, tt.high}
		var words []string
		for _, v := range a.ticks() {
			words = append(words, short(v))
		}
		if got := strings.Join(words, " "); got != tt.want {
			t.Errorf("ticks of %v to %v = %q, want %q", tt.low, tt.high, got, tt.want)
		}
	}
}

func TestAxis(t *testing.T) {
	a := newAxis(0, 100)
	for _, v := range []float64{10, 1000, 0, -1} { // no logarithm: left out
		a.take(v)
	}
	places := []float64{a.at(10), a.at(100), a.at(1000)}
	if !slices.IsSorted(places) || math.Abs(places[1]-50) > 1e-9 {
		t.Errorf("10, 100 and 1000 are at %v, want the second one at 50", places)
	}
	if a.widen(10000); a.low != 1 || a.high != 10000 {
		t.Errorf("10 to 1000 widened to a factor of 10000 is %v to %v, want 1 to 10000", a.low, a.high)
	}
	if a.widen(10); a.low != 1 || a.high != 10000 {
		t.Errorf("1 to 10000 widened to a factor of 10 is %v to %v, want it unchanged", a.low, a.high)
	}
}
