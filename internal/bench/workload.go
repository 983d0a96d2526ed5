package main

import (
	"context"
	"fmt"
	"strings"
)

// workload is what builders are compared by.
type workload struct {
	name, title string
	base        string // the base image's kind
	out         output
	noCache     bool
	runs        bool // there are RUN steps: the network counts
	builds      int  // at once, each with a context of its own; 0 is 1

	// dockerfile is that of build i. The serial is another in each run where
	// fresh is set, else the same in all.
	dockerfile func(base, serial string, i int) string
	files      func(ctx context.Context, dir string, i int) error // writes the rest of the context
	change     func(dir string, serial string) error              // changes it before each run

	alone work // what of it is no builder's

	// image, where it is set, stands for base.
	image func(ctx context.Context, serial string) (string, error)

	primed  priming
	fresh   bool     // see dockerfile
	newBase bool     // each run's base image is one that nobody has seen
	after   []string // it is these workloads, once each, and what they leave on disk
	forget  bool     // a state of our own is emptied before each run
	warm    bool     // each run's timed build comes after one without output
	touch   int64    // so many bytes of memory are touched, and free again, before each run
}

// priming is what a builder does before the first round.
type priming int

const (
	primeBase priming = iota // pull the base image
	primeSame                // build the same
	primeTool                // anything
)

// workloads lists them all.
func (b *bench) workloads() []workload {
	from := func(steps ...string) func(string, string, int) string {
		return func(base, _ string, _ int) string { return "FROM " + base + "\n" + strings.Join(steps, "\n") + "\n" }
	}
	large := func(out output, title string) workload {
		return workload{title: "COPY of 1 GiB in 4 files never seen before, " + title, base: "busybox", out: out, noCache: true,
			files: largeFiles, change: stamp, dockerfile: from("COPY big*.bin /data/")}
	}
	small := func(out output, title string) workload {
		return workload{title: "COPY of 50,000 files of 4 KiB never seen before, " + title, base: "busybox", out: out, noCache: true,
			files: smallFiles, change: stamp, dockerfile: from("COPY src /data/")}
	}
	push := func(out output, warm bool, title string) workload {
		return workload{title: title, base: "busybox", out: out, warm: warm, change: stamp, dockerfile: from("COPY t /t/"),
			files: func(_ context.Context, dir string, _ int) error {
				if err := unpack("toolchain", dir+"/t"); err != nil {
					return err
				}
				return unpack("system", dir+"/t")
			}}
	}
	node := func(phase string, w workload) workload {
		w.name, w.title, w.base, w.runs = "w8n+"+phase, "a Node application, "+w.title, "node", true
		w.files, w.dockerfile = b.nodeApp, nodeDockerfile
		return w
	}
	golang := func(phase string, w workload) workload {
		w.name, w.title, w.base, w.runs = "w8g+"+phase, "a Go application, "+w.title, "golang", true
		w.files, w.dockerfile = b.goApp, goDockerfile
		return w
	}
	const cold, edited, same = "base image here, nothing else", "a line edited", "nothing to do"
	named := func(name string, w workload) workload { w.name = name; return w }
	onlyCopies := func(w workload) workload { w.alone = copyAlone; return w }
	// As much as builders take for 1 GiB at most: two copies, and some more.
	inPlace := func(w workload) workload { w.alone, w.touch = copyAlone, 4<<30; return w }
	return []workload{
		{name: "w1s", title: "nothing to do: 3 steps, one file", base: "busybox", runs: true, primed: primeSame,
			files:      func(_ context.Context, dir string, _ int) error { return write(dir, "a.txt", "hello\n") },
			dockerfile: from("COPY a.txt /a.txt", "RUN cat /a.txt >/b.txt", "ENV X=1")},
		{name: "w1", title: "nothing to do: 20 steps, 10,000 files", base: "busybox", runs: true, primed: primeSame, files: manySteps,
			dockerfile: from(twentySteps()...)},
		{name: "w2", title: "one of 10,000 files changed: COPY and a cheap RUN", base: "busybox", runs: true, primed: primeSame,
			files:  func(_ context.Context, dir string, _ int) error { return textTree(dir+"/src", 100, 100, 2) },
			change: appendToOne, dockerfile: from("WORKDIR /app", "COPY . /app/", "RUN cat /app/src/d050/f050.txt | wc -c >/size")},
		{name: "w3", title: "50 RUN that do nothing, not cached", base: "busybox", runs: true, noCache: true,
			dockerfile: from(numbered(50, func(i int) string { return fmt.Sprintf("RUN true %d", i) })...)},
		{name: "w4", title: "8 stages of sleep 1, not cached", base: "busybox", runs: true, noCache: true, dockerfile: eightStages},
		named("w5a", onlyCopies(large(nothing, "no name"))),
		named("w5a+memory", inPlace(large(nothing, "no name, memory in place"))),
		named("w5a+t", large(tagged, "with a name")),
		named("w5a+oci", large(ociTar, "as an OCI archive")),
		named("w5b", onlyCopies(small(nothing, "no name"))),
		named("w5b+oci", small(ociTar, "as an OCI archive")),
		named("w6", push(pushGzip, true, "first push of 440 MB, built before, gzip")),
		named("w6+zstd", push(pushZstd, true, "first push of 440 MB, built before, zstd")),
		named("w6+build", push(pushGzip, false, "build and first push of 440 MB, gzip")),
		{name: "w7", title: "cold pull of a base image, RUN true", base: "system", runs: true, newBase: true, primed: primeTool, dockerfile: from("RUN true")},
		{name: "w7b", title: "cold pull of two large layers, RUN true", base: "golang", runs: true, newBase: true, primed: primeTool, dockerfile: from("RUN true")},
		node("cold", workload{title: cold, fresh: true, alone: inCopy(npmCommand + ` --cache "$caches/npm"`)}),
		node("edit", workload{title: edited, primed: primeSame, change: edit("server.js", "send('")}),
		node("noop", workload{title: same, primed: primeSame}),
		golang("cold", workload{title: cold, fresh: true, alone: inCopy(`export GOMODCACHE="$caches/modules" GOCACHE="$caches/build" GOTOOLCHAIN=local GOWORK=off; ` + goDownload + "; " + goBuild + ` -o "$caches/app.out" .`)}),
		golang("edit", workload{title: edited, primed: primeSame, change: edit("main.go", `version = "`)}),
		golang("noop", workload{title: same, primed: primeSame}),
		named("w9", severalBuilds(8)),
		{name: "disk", title: "state on disk after w1, w2, w5b and w5a", after: []string{"w1", "w2", "w5b", "w5a"}, base: "busybox"},
	}
}

func numbered(n int, line func(int) string) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = line(i)
	}
	return lines
}

func twentySteps() []string {
	return []string{
		"ENV A=1", "WORKDIR /app", "COPY conf/c0.conf /etc/c0.conf", "RUN mkdir -p /data && echo 1 >/data/1",
		"ENV B=2", "COPY conf/c1.conf /etc/c1.conf", "RUN echo 2 >/data/2", "COPY conf/c2.conf /etc/c2.conf",
		"ENV C=3 D=4", "RUN echo 3 >/data/3", "COPY conf/c3.conf conf/c4.conf /etc/", "RUN echo 4 >/data/4",
		"COPY conf/c5.conf /etc/c5.conf", "RUN echo 5 >/data/5", "ENV E=5", "COPY . /app/",
		"RUN ls /app >/data/6", "RUN echo 7 >/data/7", "ENV F=6", "RUN echo 8 >/data/8",
	}
}

func eightStages(base, _ string, _ int) string {
	var text strings.Builder
	for i := range 8 {
		fmt.Fprintf(&text, "FROM %s AS s%d\nRUN sleep 1 && echo %[2]d >/out%[2]d\n", base, i)
	}
	fmt.Fprintf(&text, "FROM %s\n", base)
	for i := range 8 {
		fmt.Fprintf(&text, "COPY --from=s%d /out%[1]d /out%[1]d\n", i)
	}
	return text.String()
}

// severalBuilds is n different builds at once.
func severalBuilds(n int) workload {
	return workload{title: fmt.Sprintf("%d different builds at once", n), base: "system", runs: true, builds: n, change: stamp,
		files: func(_ context.Context, dir string, i int) error { return textTree(dir+"/src", 10, 100, 100+uint64(i)) },
		dockerfile: func(base, _ string, i int) string {
			return fmt.Sprintf("FROM %s\nWORKDIR /app\nCOPY . /app/\nRUN find /app -type f | xargs sha256sum >/sums-%d\nRUN sort /sums-%[2]d >/sorted && rm -rf /app/src/d000\nRUN tar cf /all.tar /app\n", base, i)
		}}
}
