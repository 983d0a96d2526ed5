package builder

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/archive"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
)

// errNotDir is what a path below a file is.
var errNotDir error = unix.ENOTDIR

// isURL reports a context that is not on this machine.
func isURL(s string) bool {
	if _, ok, err := dockerfile.GitSource(gitURL(s)); ok || err != nil {
		return true
	}
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

// gitURL is s with the forms written out that docker build takes for git alone.
func gitURL(s string) string {
	if strings.HasPrefix(s, "github.com/") {
		return "https://" + strings.TrimSuffix(s, ".git") + ".git"
	}
	return s
}

// contextFromStdin takes an archive, or a Dockerfile without a context, from
// standard input.
func (j *job) contextFromStdin(ctx context.Context) (string, error) {
	if j.Stdin == nil {
		return "", errors.New("read the context from standard input: there is none")
	}
	dir, err := j.contextFromReader(ctx, stoppable(ctx, j.Stdin))
	if err != nil {
		return "", fmt.Errorf("read the context from standard input: %w", err)
	}
	return dir, nil
}

// contextFromReader extracts an archive; anything else is a Dockerfile, with an
// empty context.
func (j *job) contextFromReader(ctx context.Context, in io.Reader) (string, error) {
	r := bufio.NewReaderSize(in, 64<<10)
	head, err := r.Peek(512)
	if len(head) == 0 {
		return "", cmpErr(err, errors.New("it is empty"))
	}
	dir, err := j.tempContext()
	if err != nil {
		return "", err
	}
	if !isArchive(head) {
		data, err := readAll(r)
		j.contexts.dockerfile, j.contexts.dockerfileName = data, "-"
		return dir, err
	}
	return dir, extractContext(ctx, r, dir)
}

func cmpErr(a, b error) error {
	if a != nil && !errors.Is(a, io.EOF) {
		return a
	}
	return b
}

func (j *job) tempContext() (string, error) {
	tmp, err := j.Store.TempDir()
	if err != nil {
		return "", err
	}
	j.contexts.temp, err = os.MkdirTemp(tmp, "context-")
	return j.contexts.temp, err
}

// isArchive knows archives, compressed or not, by their first bytes; a
// Dockerfile is text.
func isArchive(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b\x08", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return len(head) >= 512 && (bytes.Equal(head[257:262], []byte("ustar")) || bytes.IndexByte(head, 0) >= 0)
}

func extractContext(ctx context.Context, r io.Reader, dir string) error {
	a, err := archive.Open(r)
	if err != nil {
		return err
	}
	defer a.Close()
	t, err := tree.New(dir, nil)
	if err != nil {
		return err
	}
	// In the image they are root's whoever owns them here, and giving them away
	// is for root alone.
	owner := &archive.Owner{UID: os.Getuid(), GID: os.Getgid()}
	err = a.Extract(ctx, t, "/", archive.Options{Now: time.Now(), Owner: owner})
	return errors.Join(err, t.Close())
}

// contextFromURL takes the context from a git repository, or from an archive or
// a Dockerfile that a server has.
func (j *job) contextFromURL(ctx context.Context) (dir string, err error) {
	err = internalStep(j.Sink, "context", "load build context from "+j.Context, func(progress.Step) error {
		src, ok, err := dockerfile.GitSource(gitURL(j.Context))
		if err != nil {
			return err
		}
		if ok {
			dir, err = j.contextFromGit(ctx, src)
		} else {
			dir, err = j.contextFromHTTP(ctx)
		}
		return err
	})
	return dir, err
}

func (j *job) contextFromGit(ctx context.Context, src llb.Source) (string, error) {
	git := j.gitSource()
	// The Dockerfile may ask for the history: COPY .git, git describe.
	if keep, err := strconv.ParseBool(j.Frontend.BuildArgs["BUILDKIT_CONTEXT_KEEP_GIT_DIR"]); err == nil {
		src.Git.KeepDir = src.Git.KeepDir || keep
	}
	src, err := git.Pin(ctx, src)
	if err != nil {
		return "", err
	}
	c, err := git.Open(ctx, src)
	if err != nil {
		return "", err
	}
	j.contexts.temp = c.Dir
	j.contexts.date = func(ctx context.Context) (*time.Time, error) { return git.Date(ctx, src) }
	return c.Dir, nil
}

func (j *job) contextFromHTTP(ctx context.Context) (string, error) {
	web := j.httpSource()
	src, err := web.Pin(ctx, llb.Source{Scheme: llb.HTTP, Ref: j.Context, Filename: "context"})
	if err != nil {
		return "", err
	}
	c, err := web.Open(ctx, src)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(c.Dir)
	j.contexts.date = func(ctx context.Context) (*time.Time, error) { return web.Date(ctx, src) }
	f, err := os.Open(filepath.Join(c.Dir, "context"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	return j.contextFromReader(ctx, f)
}
