package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb/dockerfile"
	"github.com/861fb494/build/parser/ignore"
)

// contexts is what a build reads of its user's files.
type contexts struct {
	byName         map[string]*source.Context
	stats          map[string]*cache.Stats // by the context's name
	dockerfile     []byte
	dockerfileName string // as messages call it
	dockerfilePath string // "" if it is no file
	dir            string // of the main context; "": there is none
	ignore         *ignore.Matcher
	ignoreName     string // the file that it was read from
	// date is when the main context was last changed; nil of a directory.
	date func(context.Context) (*time.Time, error)
	temp string // a directory of our own that the context was put into
}

func (c *contexts) close() {
	for _, x := range c.byName {
		x.Close()
	}
	for _, s := range c.stats {
		s.Close()
	}
	if c.temp != "" {
		os.RemoveAll(c.temp)
	}
}

// save keeps what was learned of the files. That it cannot be kept costs the
// next build time, and is no reason for this one to fail.
func (c *contexts) save() {
	for name, s := range c.stats {
		_ = s.Save(c.byName[name].Hashed())
	}
}

// maxDockerfile bounds a Dockerfile; BuildKit's bound is smaller.
const maxDockerfile = 16 << 20

// open finds the context directories and the Dockerfile.
func (j *job) open(ctx context.Context) error {
	c := &contexts{byName: map[string]*source.Context{}, stats: map[string]*cache.Stats{}}
	j.contexts = c
	if err := j.openSession(); err != nil {
		return err
	}
	dir, err := j.contextDir(ctx)
	if err != nil {
		return err
	}
	c.dir = dir
	if err := j.readDockerfile(ctx, dir); err != nil {
		return err
	}
	if dir != "" {
		if c.ignore, c.ignoreName, err = j.readIgnore(dir); err != nil {
			return err
		}
		if err := j.addContext("context", dir, c.ignore); err != nil {
			return err
		}
	}
	for name, value := range j.Frontend.Contexts {
		if !dockerfile.IsDirectory(value) {
			continue
		}
		m, err := c.ignoreFile(filepath.Join(value, ".dockerignore"))
		if err != nil {
			return err
		}
		if err := j.addContext(name, value, m); err != nil {
			return fmt.Errorf("build context %s=%s: %w", name, value, err)
		}
	}
	j.local = source.NewLocal(c.byName)
	return nil
}

// openSession has ready what git and steps may use of the user's.
func (j *job) openSession() error {
	if err := j.checkSecrets(); err != nil {
		return err
	}
	temp := ""
	if len(j.SSH) > 0 {
		var err error
		if temp, err = j.Store.TempDir(); err != nil {
			return err
		}
	}
	var err error
	j.agents, err = openAgents(j.SSH, temp)
	return err
}

func (j *job) addContext(name, dir string, m *ignore.Matcher) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is no directory", dir)
	}
	stats := j.Store.Stats(dir)
	x, err := source.OpenContext(dir, m, stats)
	if err != nil {
		stats.Close()
		return err
	}
	j.contexts.byName[name] = x
	j.contexts.stats[name] = stats
	return nil
}

// contextDir is the directory of the context; "" where there is none, with a
// Dockerfile on standard input.
func (j *job) contextDir(ctx context.Context) (string, error) {
	switch {
	case j.Context == "-":
		return j.contextFromStdin(ctx)
	case isURL(j.Context):
		return j.contextFromURL(ctx)
	}
	st, err := os.Stat(j.Context)
	if err != nil {
		return "", fmt.Errorf("build context: %w", err)
	}
	if !st.IsDir() {
		return "", fmt.Errorf("build context %s is no directory; a Dockerfile is given with --file %s, beside the directory", j.Context, j.Context)
	}
	return j.Context, nil
}

func (j *job) readDockerfile(ctx context.Context, dir string) error {
	c := j.contexts
	if c.dockerfile != nil {
		return nil // it was all of standard input
	}
	path := j.File
	switch {
	case path == "-" && j.Context == "-":
		return errors.New("the context and the Dockerfile cannot both be standard input")
	case path == "-":
		data, err := readAll(stoppable(ctx, j.Stdin))
		c.dockerfile, c.dockerfileName = data, "-"
		return err
	case path == "":
		path = filepath.Join(dir, "Dockerfile")
	case c.temp != "" && !filepath.IsAbs(path):
		path = filepath.Join(dir, path) // of a context that came as an archive
	}
	f, err := openStoppable(ctx, func() (*os.File, error) { return c.openFile(path) })
	if lower := lowerCase(path); errors.Is(err, fs.ErrNotExist) && lower != "" {
		if other, lowerErr := c.openFile(lower); lowerErr == nil {
			f, err, path = other, nil, lower
		}
	}
	if errors.Is(err, fs.ErrNotExist) && j.File == "" {
		if c.temp != "" {
			dir = "the build context"
		}
		return fmt.Errorf("there is no Dockerfile in %s: name it with --file", dir)
	}
	if err != nil {
		return fmt.Errorf("read Dockerfile: %w", err)
	}
	defer f.Close()
	c.dockerfilePath = path
	if c.dockerfile, err = readAll(stoppable(ctx, f)); err != nil {
		return fmt.Errorf("read Dockerfile: %w", err)
	}
	c.dockerfileName = filepath.Base(path)
	if j.File != "" {
		c.dockerfileName = j.File
	}
	return nil
}

// lowerCase is the other name that a file called Dockerfile may have, as with
// docker build.
func lowerCase(path string) string {
	if filepath.Base(path) != "Dockerfile" {
		return ""
	}
	return filepath.Join(filepath.Dir(path), "dockerfile")
}

// openFile opens a file of the user's. In a context that came from elsewhere a
// symbolic link cannot lead out of it, and nothing but a file is opened.
func (c *contexts) openFile(path string) (*os.File, error) {
	rel, err := filepath.Rel(c.temp, path)
	if c.temp == "" || err != nil || !filepath.IsLocal(rel) {
		return os.Open(path)
	}
	root, err := os.OpenRoot(c.temp)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, cmpErr(err, fmt.Errorf("%s is no file", rel))
	}
	return f, nil
}

func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxDockerfile+1))
	if err == nil && len(data) > maxDockerfile {
		err = fmt.Errorf("it is larger than %d bytes", maxDockerfile)
	}
	return data, err
}

// readIgnore reads <Dockerfile>.dockerignore beside the Dockerfile, or else the
// context's .dockerignore.
func (j *job) readIgnore(dir string) (*ignore.Matcher, string, error) {
	var names []string
	if beside := j.contexts.dockerfilePath; beside != "" {
		names = append(names, beside+".dockerignore")
	}
	for _, p := range append(names, filepath.Join(dir, ".dockerignore")) {
		m, err := j.contexts.ignoreFile(p)
		if err != nil || m != nil {
			return m, filepath.Base(p), err
		}
	}
	return nil, "", nil
}

// ignoreFile is nil for a file that is not there, and for a directory.
func (c *contexts) ignoreFile(path string) (*ignore.Matcher, error) {
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return nil, nil
	}
	f, err := c.openFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDir) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ignore file: %w", err)
	}
	defer f.Close()
	m, err := ignore.Parse(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// checkSecrets looks whether secrets are there before anything is built. A
// variable that is not set is an empty secret, as with BuildKit.
func (j *job) checkSecrets() error {
	for _, id := range slices.Sorted(maps.Keys(j.Secrets)) {
		s := j.Secrets[id]
		if s.Env != "" {
			if _, ok := os.LookupEnv(s.Env); !ok {
				j.Sink.Emit(progress.Warning{Message: fmt.Sprintf("--secret id=%s: the environment has no %s, so the secret is empty", id, s.Env)})
			}
			continue
		}
		st, err := os.Stat(s.File)
		if err == nil && st.IsDir() {
			err = fmt.Errorf("%s is a directory", s.File)
		}
		if err != nil {
			return fmt.Errorf("--secret id=%s: %w", id, err)
		}
	}
	return nil
}
