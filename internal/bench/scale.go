package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Curve is how time and memory grow with a size.
type Curve struct {
	Name, Title string
	Unit        string // of the sizes: "files"
	Series      []CurveSeries
}

// CurveSeries is one builder's, in one phase.
type CurveSeries struct {
	Builder, Phase string
	Points         []CurvePoint // by size
}

// CurvePoint is a size's.
type CurvePoint struct {
	Size  int
	Entry Entry
}

// curve is what is measured at several sizes.
type curve struct {
	name, title, unit string
	sizes             []int
	phases            []phase
}

// phase is a workload of any size.
type phase struct {
	name   string
	of     func(n int) workload
	copies bool // the context, which is then copied by cp(1) too
}

// parseSizes reads "files=1000,10000".
func parseSizes(text string) (name string, sizes []int, err error) {
	name, list, ok := strings.Cut(text, "=")
	if !ok {
		return "", nil, errors.New("want CURVE=N,N,…")
	}
	for field := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			return "", nil, fmt.Errorf("size %q: want a number above 0", field)
		}
		sizes = append(sizes, n)
	}
	slices.Sort(sizes)
	return name, slices.Compact(sizes), nil
}

// curves lists them all.
func (b *bench) curves() []curve {
	copyAll := func(base, _ string, _ int) string { return "FROM " + base + "\nCOPY src /data/\n" }
	files := func(n int) workload {
		return workload{base: "busybox", dockerfile: copyAll, files: func(_ context.Context, dir string, _ int) error { return someFiles(dir, n) }}
	}
	run := func(stage int) func(n int) workload {
		return func(n int) workload {
			return workload{base: "busybox", runs: true, dockerfile: func(base, _ string, _ int) string { return runSteps(base, n, stage) }}
		}
	}
	same := func(of func(int) workload) phase {
		return phase{name: "nothing to do", of: func(n int) workload { w := of(n); w.primed = primeSame; return w }}
	}
	anew := func(name string, of func(int) workload) phase {
		return phase{name: name, of: func(n int) workload { w := of(n); w.noCache, w.change, w.forget = true, stamp, true; return w }}
	}
	copied := func(p phase) phase { p.copies = true; return p }
	return []curve{
		{"files", "COPY of many files of 1 KiB", "files", []int{1000, 10000, 100000}, []phase{copied(anew("never seen before", files)), same(files)}},
		{"content", "COPY of files of 256 MiB", "GiB", []int{1, 2, 4, 8}, []phase{copied(anew("never seen before", func(n int) workload {
			return workload{base: "busybox", dockerfile: copyAll, files: func(_ context.Context, dir string, _ int) error { return bigFiles(filepath.Join(dir, "src"), 4*n) }}
		}))}},
		{"steps", "RUN steps, 100 to a stage that begins with the last one's result", "steps", []int{10, 30, 100, 300, 1000}, []phase{anew("not cached", run(100)), same(run(100))}},
		// overlayfs stacks at most 500 directories: see OVL_MAX_STACK in Linux.
		{"depth", "RUN steps of one stage", "steps", []int{10, 30, 100, 300, 480}, []phase{anew("not cached", run(480)), same(run(480))}},
		{"builds", "different builds at once", "builds", []int{1, 2, 4, 8, 16}, []phase{{name: "never seen before", of: func(n int) workload {
			w := severalBuilds(n)
			w.forget = true
			return w
		}}}},
		{"layers", "cold pull of layers of 1 MB, RUN true", "layers", []int{1, 2, 4, 8, 16, 32, 64, 128}, []phase{{name: "cold", of: func(n int) workload {
			return workload{base: "busybox", runs: true, newBase: true, primed: primeTool, forget: true,
				image:      func(ctx context.Context, serial string) (string, error) { return b.images.pushMany(ctx, n, serial) },
				dockerfile: func(base, _ string, _ int) string { return "FROM " + base + "\nRUN true\n" }}
		}}}},
	}
}

// plainCopy is cp(1), which does nothing but copy the context. A COPY need not grow
// otherwise than that does on the same machine.
func (b *bench) plainCopy() builder {
	root := filepath.Join(b.dir, "state", "cp")
	return builder{name: "cp", title: "cp", state: root, own: true, argv: func(j job) [][]string {
		return [][]string{{"mkdir", "-p", root}, {"cp", "-a", j.context + "/.", root}}
	}}
}

// runSteps is a Dockerfile of n RUN steps, one after the other. A stage has so
// many at most; the next one begins with a file of it.
func runSteps(base string, n, stage int) string {
	var text strings.Builder
	for i := range n {
		if i%stage == 0 {
			fmt.Fprintf(&text, "FROM %s AS s%d\n", base, i/stage)
			if i > 0 {
				fmt.Fprintf(&text, "COPY --from=s%d /step /step\n", i/stage-1)
			}
		}
		fmt.Fprintf(&text, "RUN echo %d >/step\n", i)
	}
	return text.String()
}

// someFiles writes n files of 1 KiB, 100 in a directory.
func someFiles(dir string, n int) error {
	source := random(uint64(n))
	for i := range n {
		sub := filepath.Join(dir, "src", fmt.Sprintf("d%04d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		if err := writeRandom(filepath.Join(sub, fmt.Sprintf("f%02d", i%100)), source, 1024); err != nil {
			return err
		}
	}
	return nil
}

// scale measures curves.
func (b *bench) scale(ctx context.Context) (Report, error) {
	if b.options.builders == "" {
		b.options.builders = "build"
	}
	wanted, err := selectNamed(b.curves(), func(c curve) string { return c.name }, b.options.workloads)
	if err != nil {
		return Report{}, err
	}
	for name := range b.options.sizes {
		if !slices.ContainsFunc(wanted, func(c curve) bool { return c.name == name }) {
			return Report{}, fmt.Errorf("-sizes: there is no curve %q: -h lists them", name)
		}
	}
	if err := b.start(ctx); err != nil {
		return Report{}, err
	}
	b.found = slices.DeleteFunc(b.found, func(is builder) bool { return is.onlyRuns })
	report := b.describe()
	printMachine(os.Stdout, report)
	for _, c := range wanted {
		if sizes := b.options.sizes[c.name]; sizes != nil {
			c.sizes = sizes
		}
		done, err := b.curve(ctx, c)
		if err != nil {
			return report, fmt.Errorf("%s: %w", c.name, err)
		}
		report.Curves = append(report.Curves, done)
		if b.options.out != "" {
			if err := report.write(b.options.out); err != nil {
				return report, err
			}
		}
	}
	return report, nil
}

// curve measures one at all its sizes, and prints what it finds.
func (b *bench) curve(ctx context.Context, c curve) (Curve, error) {
	done := Curve{Name: c.name, Title: c.title, Unit: c.unit}
	found := b.found
	defer func() { b.found = found }()
	for _, p := range c.phases {
		if b.found = found; p.copies {
			b.found = append(slices.Clone(found), b.plainCopy())
		}
		first := len(done.Series)
		for _, is := range b.found {
			done.Series = append(done.Series, CurveSeries{Builder: is.name, Phase: p.name})
		}
		for _, n := range c.sizes {
			w := p.of(n)
			w.name, w.title = fmt.Sprintf("%s-%d", c.name, n), c.title
			result, err := b.workload(ctx, w)
			if err != nil {
				return done, err
			}
			if result.Failure != "" {
				return done, errors.New(result.Failure)
			}
			for i, e := range result.Entries {
				s := &done.Series[first+i]
				s.Points = append(s.Points, CurvePoint{n, e})
				fmt.Printf("%s, %s, %d %s, %s: %s\n", c.title, s.Phase, n, c.unit, s.Builder, e.summary())
			}
		}
		for _, s := range done.Series[first:] {
			fmt.Printf("%s, %s, %s: %s\n", c.title, s.Phase, s.Builder, s.growth(c.unit))
		}
	}
	return done, nil
}

// summary is an entry in a line.
func (e Entry) summary() string {
	if e.Failure != "" {
		return "failed: " + e.Failure
	}
	return fmt.Sprintf("%s, CPU %.2f s, client %.0f MB, daemon %.0f MB", seconds(median(e.values(wall))), median(e.values(cpu)), median(e.values(client))/1e6, median(e.values(daemon))/1e6)
}
