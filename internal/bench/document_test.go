package main

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/internal/bench/limits"
)

var update = flag.Bool("update", false, "write testdata anew")

// example is a small report.
func example() Report {
	s := func(walls ...float64) []Sample {
		var samples []Sample
		for _, w := range walls {
			samples = append(samples, Sample{Wall: w, CPU: 2 * w, Client: 17e6, Foreign: 0.1})
		}
		return samples
	}
	remote := s(0.06, 0.12, 0.061)
	for i := range remote {
		remote[i].Daemon = 90e6
	}
	return Report{
		Date:     time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Machine:  Machine{CPU: "Some CPU with SHA extensions", Cores: 2, Memory: 16e9, Kernel: "6.1.0", FileSystem: "ext4", Go: "go1.26"},
		Builders: []Builder{{"build", "build --network host", "v1"}, {"build-net", "build, default network", "v1"}, {"buildkit", "BuildKit", "v0.32"}},
		Missing:  []string{"docker: not on PATH"},
		Rounds:   3,
		Limits:   []limits.Limit{{Name: "SHA-256, one thread", Value: 187.2, Unit: "MB/s"}},
		Results: []Result{
			{Name: "w1s", Title: "nothing to do", Entries: []Entry{
				{Builder: "build", Samples: s(0.009, 0.018, 0.01), State: 3e6},
				{Builder: "build-net", Samples: s(0.012, 0.013, 0.011), State: 3e6},
				{Builder: "buildkit", Samples: remote, State: 4e6},
			}},
			{Name: "w5a", Title: "COPY of a lot", Entries: []Entry{
				{Builder: "build", Samples: []Sample{{Wall: 1.5, CPU: 3, Client: 17e6, Output: 1074e6}}},
				{Builder: "buildkit", Failure: "buildctl: exit status 1"},
			}},
			{Name: "w8n", Title: "a Node application", Failure: "npm is not here"},
			{Name: "disk", Title: "state on disk after w1s", Layers: 1e9, Entries: []Entry{
				{Builder: "build", Samples: s(1), State: 1.02e9}, {Builder: "buildkit", Samples: s(2), State: 2.5e9},
			}},
		},
	}
}

// exampleCurves is a small report of curves.
func exampleCurves() Report {
	r := example()
	r.Results, r.Limits, r.Missing, r.Builders = nil, nil, nil, r.Builders[:1]
	c := Curve{Name: "files", Title: "COPY of many files", Unit: "files", Series: []CurveSeries{{Builder: "build", Phase: "never seen before"}}}
	for i, n := range []int{1000, 10000, 100000} {
		e := Entry{Builder: "build", Samples: []Sample{{Wall: []float64{0.1, 0.8, 7}[i], CPU: []float64{0.1, 1, 10}[i], Client: 20e6 + int64(n)*280}}}
		c.Series[0].Points = append(c.Series[0].Points, CurvePoint{n, e})
	}
	r.Curves = []Curve{c}
	return r
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
	}
}

func TestDocument(t *testing.T) {
	doc := filepath.Join(t.TempDir(), "doc.md")
	const before = "# Figures\n\n<!-- begin results-docker: made -->\n<!-- end results-docker -->\n\n<!-- begin results: made -->\nold\n<!-- end results -->\n\nprose\n\n<!-- begin scale: made -->\n<!-- end scale -->\n\nend\n"
	if err := os.WriteFile(doc, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	further := example()
	further.Called, further.Results = "docker", further.Results[:1]
	for _, r := range []Report{example(), exampleCurves(), further, example()} { // the last one changes nothing
		if err := r.document(doc); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "document.md", string(text))
	for name, want := range map[string]Report{"results": example(), "results-docker": further, "scale": exampleCurves()} {
		got, err := readReport(filepath.Join(filepath.Dir(doc), "doc", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if a, b := got.tables()+got.slopes(), want.tables()+want.slopes(); a != b {
			t.Errorf("%s.json reads as\n%s\nwant\n%s", name, a, b)
		}
		picture, err := os.ReadFile(filepath.Join(filepath.Dir(doc), "doc", name+".svg"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(picture), "<svg ") {
			t.Errorf("%s.svg begins with %.20q", name, picture)
		}
	}
}

func TestReplaceBetween(t *testing.T) {
	for _, text := range []string{"", "<!-- begin x: -->\n", "<!-- end x -->\n<!-- begin x: -->\n", "<!-- begin x-y: -->\n<!-- end x -->\n"} {
		if got, err := replaceBetween(text, "x", "new"); err == nil {
			t.Errorf("replaceBetween(%q) = %q, want an error", text, got)
		}
	}
}

func TestPrintResult(t *testing.T) {
	var text strings.Builder
	for i, r := range example().Results {
		printResult(&text, r, i == 0)
	}
	golden(t, "results.txt", text.String())
}

func TestNumbers(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{seconds(0.009412), "9.41 ms"},
		{seconds(0.9996), "1.00 s"},
		{seconds(123.4), "123 s"},
		{digits(99.96), "100"},
		{fraction(0.156), "1/6.4"},
		{fraction(1.36), "1.36"},
		{small(31.2e-6, "s"), "31.2 µs"},
		{small(-0.5, "s"), "-500 ms"},
		{small(280, "bytes"), "280 bytes"},
		{small(23e6, "bytes"), "23.0 MB"},
	} {
		if tt.got != tt.want {
			t.Errorf("wrote %q, want %q", tt.got, tt.want)
		}
	}
}

func TestParseFlags(t *testing.T) {
	o, err := parseFlags(strings.Fields("-scale -w files -sizes files=100,10,100 -version buildkit=v0.32"))
	if err != nil {
		t.Fatal(err)
	}
	if got := o.sizes["files"]; len(got) != 2 || got[0] != 10 || o.rounds != 3 || o.versions["buildkit"] != "v0.32" {
		t.Errorf("sizes %v, rounds %d, versions %v, want [10 100], 3, BuildKit's", got, o.rounds, o.versions)
	}
	for _, args := range []string{"w1", "-n -1", "-sizes files", "-sizes files=0", "-version 1"} {
		if _, err := parseFlags(strings.Fields(args)); err == nil {
			t.Errorf("parseFlags(%q) succeeded, want an error", args)
		}
	}
}

func TestSelectNamed(t *testing.T) {
	all := new(bench).workloads()
	name := func(w workload) string { return w.name }
	if got, err := selectNamed(all, name, "w4,w1s"); err != nil || len(got) != 2 || got[0].name != "w4" {
		t.Errorf("selectNamed(w4,w1s) = %d, %v, want both in that order", len(got), err)
	}
	if _, err := selectNamed(all, name, "w99"); err == nil {
		t.Error("selectNamed(w99) succeeded, want an error")
	}
}

// What a run did not measure is taken from the one before, which the text says.
func TestComplete(t *testing.T) {
	old := example()
	old.Builders[0].Version, old.Builders[1].Version = "v0", "v0"
	r := example()
	r.Date = r.Date.Add(time.Hour)
	r.Rounds = 5
	r.Limits = nil
	r.Results = r.Results[:1]
	if err := r.complete(old); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, x := range r.Results {
		names = append(names, x.Name)
		if (x.Earlier != nil) != (x.Name != "w1s") {
			t.Errorf("%s is of an earlier run: %v", x.Name, x.Earlier)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"disk", "w1s", "w5a", "w8n"}) {
		t.Errorf("it has %q", names)
	}
	text := r.tables()
	for _, want := range []string{"2026-01-02, on", "of an earlier run, 2026-01-02 03:04:05, of 3 rounds, with v0: ", "of 5 rounds, or as many as the earlier run had.", "measured in the run of 2026-01-02 03:04:05:"} {
		if !strings.Contains(text, want) {
			t.Errorf("the text does not have %q:\n%s", want, text)
		}
	}
	again := example() // a third run: the first stays what it was
	again.Date, again.Results = again.Date.Add(2*time.Hour), nil
	if err := again.complete(r); err != nil {
		t.Fatal(err)
	}
	if runs := again.earlier(); len(runs) != 2 {
		t.Errorf("the results are of %d earlier runs, want 2: %v", len(runs), runs)
	}
	for what, change := range map[string]func(r *Report){
		"another machine":  func(r *Report) { r.Machine.Cores++ },
		"another BuildKit": func(r *Report) { r.Builders[2].Version = "v0.33" },
		"no BuildKit":      func(r *Report) { r.Builders = r.Builders[:2] },
	} {
		other := example()
		change(&other)
		if err := other.complete(old); err == nil {
			t.Errorf("%s: completed", what)
		}
	}
}
