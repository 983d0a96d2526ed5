package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/861fb494/build/internal/bench/limits"
)

// Report is everything that a run of the benchmark found; its JSON is for
// programs.
type Report struct {
	Date     time.Time
	Called   string `json:",omitempty"` // of a document's further results
	Machine  Machine
	Builders []Builder
	Missing  []string `json:",omitempty"` // builders that are not here, and why
	Rounds   int
	Limits   []limits.Limit `json:",omitempty"` // of this machine
	LimitsOf *Run           `json:",omitempty"` // they are of another run
	Results  []Result       `json:",omitempty"`
	Curves   []Curve        `json:",omitempty"`
}

// Builder is one that was measured.
type Builder struct{ Name, Title, Version string }

// Result is a workload's.
type Result struct {
	Name, Title string
	Failure     string `json:",omitempty"` // nothing was measured
	Layers      int64  `json:",omitempty"` // of "disk": bytes of the layers' tars
	Entries     []Entry
	Earlier     *Run `json:",omitempty"` // it is of another run than the report
}

// Run is when a result was measured, and with which versions.
type Run struct {
	Date     time.Time
	Builders []Builder
	Rounds   int
}

// Entry is what a builder did with a workload.
type Entry struct {
	Builder string
	Failure string   `json:",omitempty"` // it could not
	Samples []Sample // by round
	State   int64    // bytes that all rounds added to its state on disk
}

// Sample is one run.
type Sample struct {
	Wall    float64 // seconds
	CPU     float64 // seconds of client, steps and daemon
	Client  int64   // bytes: the largest process's peak; of builds at once, added up
	Daemon  int64   // bytes: the daemon's peak during the build
	Foreign float64 // processors that worked for others meanwhile
	Output  int64   `json:",omitempty"` // bytes of the archive, or of the pushed image's layers
}

// entry is a builder's, if it has one without a failure.
func (r Result) entry(builder string) (Entry, bool) {
	for _, e := range r.Entries {
		if e.Builder == builder && e.Failure == "" && len(e.Samples) > 0 {
			return e, true
		}
	}
	return Entry{}, false
}

func (e Entry) values(of func(Sample) float64) []float64 {
	var v []float64
	for _, s := range e.Samples {
		v = append(v, of(s))
	}
	return v
}

func wall(s Sample) float64    { return s.Wall }
func cpu(s Sample) float64     { return s.CPU }
func client(s Sample) float64  { return float64(s.Client) }
func daemon(s Sample) float64  { return float64(s.Daemon) }
func foreign(s Sample) float64 { return s.Foreign }
func size(s Sample) float64    { return float64(s.Output) }

// describe is the report before there are results.
func (b *bench) describe() Report {
	r := Report{Date: time.Now().UTC().Truncate(time.Second), Called: b.options.called, Machine: thisMachine(b.dir), Missing: b.missing, Rounds: b.options.rounds}
	for _, is := range b.found {
		version := is.version
		if v := b.options.versions[is.name]; v != "" {
			version = v
		}
		r.Builders = append(r.Builders, Builder{is.name, is.title, version})
	}
	return r
}

// write puts the report into dir: results.json, or scale.json for curves, and
// a picture beside it.
func (r Report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, r.kind())
	return errors.Join(os.WriteFile(path+".json", append(text, '\n'), 0o644), os.WriteFile(path+".svg", r.picture(), 0o644))
}

// kind names the report's files, and its part of a document.
func (r Report) kind() string {
	switch {
	case len(r.Curves) > 0:
		return "scale"
	case r.Called != "":
		return "results-" + r.Called
	}
	return "results"
}

// readReport reads what write has written.
func readReport(path string) (Report, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Report{}, err
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		return Report{}, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// readReports is the last of the reports at paths, with what only those before it
// have. They are of one machine and the same builders, or it is an error.
func readReports(paths []string) (Report, error) {
	var sum Report
	for _, path := range paths {
		r, err := readReport(path)
		if err != nil {
			return sum, err
		}
		if path != paths[0] {
			err = r.complete(sum)
		}
		if err != nil {
			return sum, fmt.Errorf("%s: %w", path, err)
		}
		sum = r
	}
	return sum, nil
}

// complete adds what r does not have and the earlier report does.
func (r *Report) complete(earlier Report) error {
	if r.Called != earlier.Called {
		return errors.New("it has another name than the file before (-called)")
	}
	if r.Machine != earlier.Machine {
		return errors.New("it is of another machine than the file before: they are not to be compared")
	}
	same := func(a, b Builder) bool { return a.Name == b.Name && (a.ours() || a.Version == b.Version) }
	if !slices.EqualFunc(r.Builders, earlier.Builders, same) {
		return errors.New("it is of other builders than the file before")
	}
	named := func(list []Result, name string) bool {
		return slices.ContainsFunc(list, func(x Result) bool { return x.Name == name })
	}
	for _, x := range earlier.Results {
		if !named(r.Results, x.Name) {
			if x.Earlier == nil {
				x.Earlier = &Run{earlier.Date, earlier.Builders, earlier.Rounds}
			}
			r.Results = append(r.Results, x)
		}
	}
	place := func(name string) int {
		return slices.IndexFunc(new(bench).workloads(), func(w workload) bool { return w.name == name })
	}
	slices.SortStableFunc(r.Results, func(a, b Result) int { return place(a.Name) - place(b.Name) })
	if len(r.Limits) == 0 {
		r.Limits, r.LimitsOf = earlier.Limits, earlier.LimitsOf
		if r.LimitsOf == nil {
			r.LimitsOf = &Run{earlier.Date, earlier.Builders, earlier.Rounds}
		}
	}
	return nil
}

func printMachine(w io.Writer, r Report) {
	fmt.Fprintf(w, "%s\n%s\n", r.Date.Format(time.DateOnly), r.Machine)
	for _, b := range r.Builders {
		fmt.Fprintf(w, "%s: %s %s\n", b.Name, b.Title, b.Version)
	}
	for _, m := range r.Missing {
		fmt.Fprintf(w, "not compared: %s\n", m)
	}
	fmt.Fprintln(w)
}

// compares says whether there is a builder that is not build.
func (r Report) compares() bool {
	return slices.ContainsFunc(r.Builders, func(b Builder) bool { return !b.ours() })
}

// printResult prints a workload's rows, below the table's head where it is the
// first.
func printResult(w io.Writer, r Result, first bool) {
	const row = "%-12s%-16s%9s %9s %9s %9s %7s %9s %9s %9s %7s\n"
	if first {
		fmt.Fprintf(w, row, "workload", "builder", "median s", "from", "to", "build/it", "CPU s", "client MB", "daemon MB", "state MB", "foreign")
	}
	if r.Failure != "" {
		fmt.Fprintf(w, "%-12sfailed: %s\n", r.Name, r.Failure)
	}
	for _, e := range r.Entries {
		if e.Failure != "" {
			fmt.Fprintf(w, "%-12s%-16s failed: %s\n", r.Name, e.Builder, e.Failure)
			continue
		}
		low, high := bounds(e.values(wall))
		f := func(places int, v float64) string { return strconv.FormatFloat(v, 'f', places, 64) }
		ratio := "-"
		if v := r.ratio(e.Builder); v > 0 {
			ratio = f(3, v)
		}
		fmt.Fprintf(w, row, r.Name, e.Builder, f(3, median(e.values(wall))), f(3, low), f(3, high), ratio, f(2, median(e.values(cpu))),
			f(0, median(e.values(client))/1e6), f(0, median(e.values(daemon))/1e6), f(0, float64(e.State)/1e6), f(2, median(e.values(foreign))))
	}
	if r.Layers > 0 {
		fmt.Fprintf(w, "%-12sthe layers' tars have %.0f MB\n", r.Name, float64(r.Layers)/1e6)
	}
}

// ratio is what build took for each second of that builder; 0 where there is
// none.
func (r Result) ratio(of string) float64 {
	ours, ok1 := r.entry("build")
	its, ok2 := r.entry(of)
	if !ok1 || !ok2 || of == "build" {
		return 0
	}
	return pairedRatio(ours.values(wall), its.values(wall))
}
