package builder

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/archive"
)

// errNotDir is what a path below a file is.
var errNotDir error = unix.ENOTDIR

// isURL reports a context that is not on this machine.
func isURL(s string) bool {
	for _, p := range []string{"http://", "https://", "git://", "ssh://", "git@", "github.com/"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// contextFromStdin takes an archive, or a Dockerfile without a context, from
// standard input.
func (j *job) contextFromStdin(ctx context.Context) (string, error) {
	r := bufio.NewReaderSize(j.Stdin, 64<<10)
	head, err := r.Peek(512)
	if len(head) == 0 {
		return "", fmt.Errorf("read the context from standard input: %w", cmpErr(err, errors.New("it is empty")))
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
	if err := extractContext(ctx, r, dir); err != nil {
		return "", fmt.Errorf("read the context from standard input: %w", err)
	}
	return dir, nil
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
	err = a.Extract(ctx, t, "/", archive.Options{Now: time.Now()})
	return errors.Join(err, t.Close())
}

func (j *job) contextFromURL(context.Context) (string, error) {
	return "", fmt.Errorf("build context %s: contexts from URLs and repositories are not supported by this version: clone or download it, and name the directory", j.Context)
}
