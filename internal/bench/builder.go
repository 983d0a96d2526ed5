package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// output is what a build yields.
type output string

const (
	nothing  output = ""          // a result in the cache, without a name
	tagged   output = "tag"       // an image with a name in the builder's store
	ociTar   output = "oci"       // an archive in the OCI's layout
	pushGzip output = "push-gzip" // an image in the registry
	pushZstd output = "push-zstd"
)

func (o output) pushes() bool { return o == pushGzip || o == pushZstd }

// job is one build that a builder is asked for.
type job struct {
	context string // a directory with a Dockerfile
	tag     string // without a registry: "bench/w5a"
	out     output
	dest    string // of ociTar
	noCache bool
	profile string // where build leaves a CPU profile; "": nowhere
	alone   work
}

// work is a command that does in the new directory dest what the steps of a build
// of the context do; nil where that would say nothing.
type work func(context, dest string) []string

// builder is a program that builds, in one way of using it.
type builder struct {
	name    string
	title   string
	version string
	env     []string
	// argv is the programs to run, one after the other; none where the builder
	// has no such output.
	argv func(j job) [][]string
	// Where it keeps what it built. It may be emptied between workloads where
	// it is the benchmark's own.
	state string
	own   bool
	// daemons are the processes that build for its client; 0 where there are
	// none or they cannot be told.
	daemons []int
	// onlyRuns has it measured only where a build runs steps.
	onlyRuns bool
	// release makes it forget the image that a job made.
	release func(ctx context.Context, j job) error
}

// builders lists those that are here and wanted ("": all), and says of each
// other one why not. The first is build.
func (b *bench) builders(ctx context.Context) (found []builder, missing []string, err error) {
	wanted := func(string) bool { return true }
	if b.options.builders != "" {
		names := strings.Split(b.options.builders, ",")
		for _, n := range names {
			if !slices.Contains([]string{"build", "buildkit", "buildah", "docker", "alone"}, n) {
				return nil, nil, fmt.Errorf("no builder %q: want build, buildkit, buildah, docker or alone", n)
			}
		}
		wanted = func(name string) bool { return slices.Contains(names, name) }
	}
	if wanted("build") {
		found = append(found, b.ours(ctx)...)
	}
	for _, peer := range []struct {
		name string
		find func(context.Context) ([]builder, error)
	}{{"buildkit", b.buildkit}, {"buildah", b.buildah}, {"docker", b.docker}} {
		if !wanted(peer.name) {
			continue
		}
		those, err := peer.find(ctx)
		if err != nil {
			missing = append(missing, peer.name+": "+err.Error())
		}
		found = append(found, those...)
	}
	if wanted("alone") {
		found = append(found, b.alone())
	}
	if len(found) == 0 {
		return nil, nil, fmt.Errorf("no builder to measure: %s", strings.Join(missing, "; "))
	}
	return found, missing, nil
}

// ours is build itself, with its peers' network and with its own default.
func (b *bench) ours(ctx context.Context) []builder {
	version := firstLine(output1(ctx, b.binary, "version"))
	with := func(name, title string, flags ...string) builder {
		root := filepath.Join(b.dir, "state", name)
		return builder{name: name, title: title, version: version, state: root, own: true, argv: func(j job) [][]string {
			argv := append([]string{b.binary, "build", "--root", root, "--insecure-registry", b.registry.Addr}, flags...)
			if j.noCache {
				argv = append(argv, "--no-cache")
			}
			if j.profile != "" {
				argv = append(argv, "--cpuprofile", j.profile)
			}
			switch j.out {
			case tagged:
				argv = append(argv, "-t", j.tag)
			case ociTar:
				argv = append(argv, "-o", "type=oci,dest="+j.dest)
			case pushGzip, pushZstd:
				argv = append(argv, "-t", b.registry.Addr+"/"+j.tag, "--push", "--compression", strings.TrimPrefix(string(j.out), "push-"))
			}
			return [][]string{append(argv, j.context)}
		}}
	}
	first := with("build", "build --network "+b.options.network, "--network", b.options.network)
	if b.options.network == "default" {
		return []builder{first}
	}
	second := with("build-net", "build, default network")
	second.onlyRuns = true
	return []builder{first, second}
}

// program is a copy of one on PATH: see rewritten.
func (b *bench) program(name string) (string, error) {
	found, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is not on PATH", name)
	}
	return rewritten(found, b.dir)
}

// buildah is Buildah, with a store of its own.
func (b *bench) buildah(ctx context.Context) ([]builder, error) {
	program, err := b.program("buildah")
	if err != nil {
		return nil, err
	}
	top := filepath.Join(b.dir, "state", "buildah")
	root := filepath.Join(top, "root")
	options := []string{program, "--root", root, "--runroot", filepath.Join(top, "run"), "--storage-driver", "overlay"}
	with := func(more ...string) []string { return slices.Concat(options, more) }
	is := builder{name: "buildah", title: "Buildah", state: root, own: true}
	is.version = strings.TrimPrefix(firstLine(output1(ctx, program, "--version")), "buildah version ")
	is.env = []string{"TMPDIR=" + filepath.Join(top, "tmp")}
	is.argv = func(j job) [][]string {
		argv := with("build", "--tls-verify=false", "--network=host", "--layers", "--pull=missing", "-t", j.tag)
		if j.noCache {
			argv = append(argv, "--no-cache")
		}
		steps := [][]string{append(argv, j.context)}
		switch j.out {
		case ociTar:
			steps = append(steps, with("push", j.tag, "oci-archive:"+j.dest))
		case pushGzip, pushZstd:
			steps = append(steps, with("push", "--tls-verify=false", "--format", "oci", "--compression-format", strings.TrimPrefix(string(j.out), "push-"), j.tag, "docker://"+b.registry.Addr+"/"+j.tag))
		}
		return steps
	}
	return []builder{is}, nil
}

// buildkit is a running buildkitd, spoken to by buildctl.
func (b *bench) buildkit(ctx context.Context) ([]builder, error) {
	program, err := b.program("buildctl")
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, program, "debug", "workers", "--verbose").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("no buildkitd answers (BUILDKIT_HOST): %s", firstLine(string(out)))
	}
	is := builder{name: "buildkit", title: "BuildKit"}
	is.version = workerVersion(string(out))
	is.daemons, err = daemonsAt(os.Getenv("BUILDKIT_HOST"), "unix:///run/buildkit/buildkitd.sock")
	if err == nil {
		is.state = openedDir(is.daemons, "buildkitd.lock")
	}
	is.argv = func(j job) [][]string {
		argv := []string{program, "build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context=" + j.context, "--local", "dockerfile=" + j.context}
		if j.noCache {
			argv = append(argv, "--no-cache")
		}
		switch j.out {
		case tagged:
			argv = append(argv, "--output", "type=image,name=docker.io/"+j.tag)
		case ociTar:
			argv = append(argv, "--output", "type=oci,dest="+j.dest)
		case pushGzip, pushZstd:
			argv = append(argv, "--output", "type=image,push=true,store=false,oci-mediatypes=true,force-compression=true,compression="+strings.TrimPrefix(string(j.out), "push-")+",name="+b.registry.Addr+"/"+j.tag)
		}
		return [][]string{argv}
	}
	// buildctl removes no image: an empty one takes the name.
	is.release = func(ctx context.Context, j job) error {
		if j.out != tagged {
			return nil
		}
		dir, err := os.MkdirTemp(b.dir, "empty-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY Dockerfile /\n"), 0o600); err != nil {
			return err
		}
		argv := is.argv(job{context: dir, tag: j.tag, out: tagged})[0]
		return quiet(ctx, nil, argv...)
	}
	return []builder{is}, nil
}

// docker is Docker as its client finds it: with BuildKit inside, and the
// classic builder.
func (b *bench) docker(ctx context.Context) ([]builder, error) {
	program, err := b.program("docker")
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, program, "info", "--format", "{{.ServerVersion}} {{.DockerRootDir}}").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = errors.New(firstLine(string(exit.Stderr)))
		}
		return nil, err
	}
	version, root, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	with := func(name, title, buildkit string) builder {
		is := builder{name: name, title: title, version: version, state: root, env: []string{"DOCKER_BUILDKIT=" + buildkit}}
		is.daemons, _ = daemonsAt(os.Getenv("DOCKER_HOST"), "unix:///run/docker.sock") // not told: not measured
		image := func(j job) string {
			if j.out == pushGzip {
				return b.registry.Addr + "/" + j.tag
			}
			return j.tag
		}
		is.argv = func(j job) [][]string {
			argv := []string{program, "build", "--network=host"}
			if j.noCache {
				argv = append(argv, "--no-cache")
			}
			if j.out != nothing {
				argv = append(argv, "-t", image(j))
			}
			steps := [][]string{append(argv, j.context)}
			switch j.out {
			case ociTar:
				steps = append(steps, []string{program, "save", "-o", j.dest, image(j)})
			case pushGzip:
				steps = append(steps, []string{program, "push", "-q", image(j)})
			case pushZstd:
				return nil
			}
			return steps
		}
		is.release = func(ctx context.Context, j job) error {
			return quiet(ctx, nil, program, "image", "rm", "--force", image(j))
		}
		return is
	}
	found := []builder{with("docker-classic", "Docker, classic builder", "0")}
	if exec.CommandContext(ctx, program, "buildx", "version").Run() == nil {
		found = append(found, with("docker", "Docker with BuildKit", "1"))
	}
	return found, nil
}

// quiet runs a program of which only a failure is of interest.
func quiet(ctx context.Context, env []string, argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(argv[0]), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// output1 is what a program prints, or "".
func output1(ctx context.Context, argv ...string) string {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(line)
}

// workerVersion is BuildKit's version in what `buildctl debug workers -v`
// prints: "BuildKit:\tgithub.com/moby/buildkit v0.32.0 0123abcd".
func workerVersion(text string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "BuildKit:"); ok {
			fields := strings.Fields(rest)
			if len(fields) >= 2 {
				return fields[1]
			}
		}
	}
	return "unknown"
}
