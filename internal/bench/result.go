package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is everything that a run of the benchmark found; its JSON is for
// programs.
type Report struct {
	Date     time.Time
	Machine  Machine
	Builders []Builder
	Missing  []string `json:",omitempty"` // builders that are not here, and why
	Rounds   int
	Results  []Result
}

// Builder is one that was measured.
type Builder struct{ Name, Title, Version string }

// Result is a workload's.
type Result struct {
	Name, Title string
	Entries     []Entry
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

func wall(s Sample) float64   { return s.Wall }
func cpu(s Sample) float64    { return s.CPU }
func client(s Sample) float64 { return float64(s.Client) }
func daemon(s Sample) float64 { return float64(s.Daemon) }

// describe is the report before there are results.
func (b *bench) describe(_ context.Context) Report {
	r := Report{Date: time.Now().UTC().Truncate(time.Second), Machine: thisMachine(b.dir), Missing: b.missing, Rounds: b.options.rounds}
	for _, is := range b.found {
		r.Builders = append(r.Builders, Builder{is.name, is.title, is.version})
	}
	return r
}

// write puts the report into dir as results.json.
func (r Report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.json"), append(text, '\n'), 0o644)
}

func printMachine(w io.Writer, r Report) {
	fmt.Fprintf(w, "%s\n%s\n", r.Date.Format(time.DateOnly), r.Machine)
	for _, b := range r.Builders {
		fmt.Fprintf(w, "%s: %s %s\n", b.Name, b.Title, b.Version)
	}
	for _, m := range r.Missing {
		fmt.Fprintf(w, "not compared: %s\n", m)
	}
	if len(r.peers()) == 0 {
		fmt.Fprintln(w, "no peers: these figures compare nothing")
	}
	fmt.Fprintln(w)
}

// peers are the builders that are not build.
func (r Report) peers() []string {
	var names []string
	for _, b := range r.Builders {
		if !strings.HasPrefix(b.Name, "build-") && b.Name != "build" {
			names = append(names, b.Name)
		}
	}
	return names
}

// printResult prints a workload's rows.
func printResult(w io.Writer, r Result, first bool) {
	t := tabwriter.NewWriter(w, 9, 8, 2, ' ', 0)
	if first {
		fmt.Fprintln(t, "workload\tbuilder       \tmedian\tfrom\tto\tCPU s\tclient MB\tdaemon MB\tstate MB\tbuild/it\tothers' CPUs")
	}
	for _, e := range r.Entries {
		if e.Failure != "" {
			fmt.Fprintf(t, "%s\t%-14s\tfailed: %s\n", r.Name, e.Builder, e.Failure)
			continue
		}
		low, high := bounds(e.values(wall))
		ratio := "-"
		if ours, ok := r.entry("build"); ok && e.Builder != "build" {
			ratio = fmt.Sprintf("%.3f", pairedRatio(ours.values(wall), e.values(wall)))
		}
		fmt.Fprintf(t, "%s\t%-14s\t%.3f\t%.3f\t%.3f\t%.3f\t%.0f\t%.0f\t%.0f\t%s\t%.2f\n", r.Name, e.Builder,
			median(e.values(wall)), low, high, median(e.values(cpu)), median(e.values(client))/1e6, median(e.values(daemon))/1e6, float64(e.State)/1e6,
			ratio, median(e.values(func(s Sample) float64 { return s.Foreign })))
	}
	t.Flush()
}
