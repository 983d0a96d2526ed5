package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// buildTime is far more than any generated build takes; one that takes longer
// hangs.
const buildTime = 2 * time.Minute

// job is a case written to disk.
type job struct {
	dir        string // scratch
	context    string
	dockerfile string
	images     imageName // of the bases
	hand       *hand     // the case carried out by hand
	serial     int
}

func (j *job) output() string {
	j.serial++
	return filepath.Join(j.dir, fmt.Sprintf("image%d.tar", j.serial))
}

// outcome is what a build yielded: an image, or a failure.
type outcome struct {
	image *Image
	steps []string // that ran, cached ones aside
	log   string   // of a failure
}

// builder builds a job.
type builder interface {
	name() string
	build(ctx context.Context, j *job) (outcome, error)
}

// command runs a builder's command line. A non-zero exit is a failed build, not
// an error; being killed is one.
func command(ctx context.Context, env []string, args ...string) (stdout []byte, failed string, err error) {
	ctx, cancel := context.WithTimeout(ctx, buildTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, "", fmt.Errorf("%s: no end after %v", args[0], buildTime)
	case errors.As(err, &exit) && exit.Exited() && exit.ExitCode() != 2 && !strings.Contains(log.String(), "goroutine "):
		return out.Bytes(), log.String(), nil
	case err != nil:
		return nil, "", fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, log.String())
	}
	return out.Bytes(), "", nil
}

// ours is the builder under test, in one of its modes.
type ours struct {
	binary  string
	driver  string
	root    string
	noCache bool
	bounded bool // --reproducible
}

func (o ours) name() string {
	if o.noCache {
		return o.driver + " --no-cache"
	}
	return o.driver
}

func (o ours) build(ctx context.Context, j *job) (outcome, error) {
	tar := j.output()
	text, ok, err := o.run(ctx, j.context, "-f", j.dockerfile,
		"--compression", "zstd", "--compression-level", "1", "--output", "type=oci,dest="+tar)
	if err != nil || !ok {
		return outcome{log: readable(text)}, err
	}
	im, err := readImage(tar)
	if err != nil {
		return outcome{}, fmt.Errorf("%s: %w", o.name(), err)
	}
	return outcome{image: im, steps: ran(text)}, os.Remove(tar)
}

// tag builds into the image store.
func (o ours) tag(ctx context.Context, j *job, dockerfile, name string) (outcome, error) {
	text, ok, err := o.run(ctx, j.context, "-f", dockerfile, "-t", name)
	if err != nil || !ok {
		return outcome{log: readable(text)}, err
	}
	return outcome{image: &Image{}}, nil
}

// run runs the builder; false is a build that failed. The events are in what it
// wrote.
func (o ours) run(ctx context.Context, where string, args ...string) ([]byte, bool, error) {
	args = append([]string{"build", "--root", o.root, "--storage-driver", o.driver, "--progress", "rawjson", "--network", "none"}, args...)
	if o.noCache {
		args = append(args, "--no-cache")
	}
	if o.bounded {
		args = append(args, "--reproducible")
	}
	// Events come on standard error, so they are joined here.
	limited, cancel := context.WithTimeout(ctx, buildTime)
	defer cancel()
	cmd := exec.CommandContext(limited, o.binary, append(args, where)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case limited.Err() != nil:
		return text, false, fmt.Errorf("%s: no end after %v", o.name(), buildTime)
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return text, false, nil
	case err != nil:
		return text, false, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, text)
	}
	return text, true, nil
}

// event is what counts of a line of --progress rawjson.
type event struct {
	Type, Step, Name string
	Internal, Cached bool
}

func events(text []byte, each func(e event, line string)) {
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil {
			e = event{}
		}
		each(e, s.Text())
	}
}

// ran is the names of the steps that were not cached.
func ran(text []byte) []string {
	names := map[string]string{}
	var out []string
	events(text, func(e event, _ string) {
		switch e.Type {
		case "started":
			// Pulls and exports have no number in brackets.
			if !e.Internal && strings.HasPrefix(e.Name, "[") {
				names[e.Step] = e.Name
			}
		case "done":
			if n, ok := names[e.Step]; ok && !e.Cached {
				out = append(out, n)
			}
		}
	})
	return out
}

// readable is the lines that are no events.
func readable(text []byte) string {
	var b strings.Builder
	events(text, func(e event, line string) {
		if e.Type == "" {
			b.WriteString(line + "\n")
		}
	})
	return b.String()
}
