package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// buildctl is a BuildKit that is reachable.
type buildctl struct{}

func (buildctl) name() string { return "buildctl" }

func (buildctl) build(ctx context.Context, j *job) (outcome, error) {
	tar := j.output()
	_, failed, err := command(ctx, nil, "buildctl", "build", "--frontend", "dockerfile.v0",
		"--local", "context="+j.context, "--local", "dockerfile="+filepath.Dir(j.dockerfile),
		"--opt", "filename="+filepath.Base(j.dockerfile), "--opt", "force-network-mode=none",
		"--output", "type=oci,compression=uncompressed,dest="+tar)
	return finish(tar, failed, err)
}

func finish(tar, failed string, err error) (outcome, error) {
	if err != nil || failed != "" {
		return outcome{log: failed}, err
	}
	im, err := readImage(tar)
	if err != nil {
		return outcome{}, err
	}
	return outcome{image: im}, os.Remove(tar)
}

// docker is a Docker with buildx and a daemon.
type docker struct{}

func (docker) name() string { return "docker" }

func (docker) build(ctx context.Context, j *job) (outcome, error) {
	tar := j.output()
	_, failed, err := command(ctx, nil, "docker", "buildx", "build", "--provenance=false", "--network", "none",
		"-f", j.dockerfile, "--output", "type=oci,dest="+tar, j.context)
	return finish(tar, failed, err)
}

// buildah is Buildah with layers, as podman build has it, and with its storage
// below dir.
type buildah struct {
	dir     string
	runtime string
}

func (buildah) name() string { return "buildah" }

func (b buildah) command(args ...string) []string {
	return append([]string{"buildah", "--root", filepath.Join(b.dir, "root"), "--runroot", filepath.Join(b.dir, "run"),
		"--storage-driver", "overlay"}, args...)
}

func (b buildah) build(ctx context.Context, j *job) (outcome, error) {
	tar := j.output()
	id := tar + ".id"
	env := []string{"TMPDIR=" + b.dir}
	_, failed, err := command(ctx, env, b.command("build", "--layers", "--tls-verify=false", "--network", "none",
		"--runtime", b.runtime, "--iidfile", id, "-f", j.dockerfile, j.context)...)
	if err != nil || failed != "" {
		return finish(tar, failed, err)
	}
	digest, err := os.ReadFile(id)
	if err != nil {
		return outcome{}, err
	}
	_, failed, err = command(ctx, env, b.command("push", "--disable-compression", string(digest), "oci-archive:"+tar)...)
	return finish(tar, failed, err)
}

// peers are the other builders of this machine that answer, of those asked for:
// names with commas between them, or "all". They may work below dir. Buildah is
// not among all: it has its own ways with working directories, setuid bits,
// ignored files and patterns, so that most of what differs is no finding.
func peers(ctx context.Context, want, dir string) ([]builder, error) {
	var out []builder
	answers := func(args ...string) bool {
		if args[0] == "buildah" && want == "all" || want != "all" && !slices.Contains(strings.Split(want, ","), args[0]) {
			return false
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return exec.CommandContext(ctx, args[0], args[1:]...).Run() == nil
	}
	if answers("buildctl", "debug", "workers") {
		out = append(out, buildctl{})
	}
	if answers("docker", "info") && answers("docker", "buildx", "version") {
		out = append(out, docker{})
	}
	bh := buildah{dir: filepath.Join(dir, "buildah"), runtime: "crun"}
	if _, err := exec.LookPath(bh.runtime); err != nil {
		bh.runtime = "runc"
	}
	if err := os.Mkdir(bh.dir, 0o700); err != nil {
		return nil, err
	}
	if answers(bh.command("info")...) {
		out = append(out, bh)
	}
	return out, nil
}
