package builder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// include finds the file that an INCLUDE names, a parser.Reader: relative to
// the file that it stands in, or from the context's root if the path begins with
// "/". A Dockerfile that is not of the context includes from its root. What
// .dockerignore says does not count, as it does not for the Dockerfile.
func (j *job) include(from, name string) (string, []byte, error) {
	c := j.contexts
	if c.dir == "" {
		return "", nil, errors.New("there is no build context to read it from")
	}
	self := c.inside()
	beside := path.Dir(from)
	if from == "" {
		beside = path.Dir(self)
	}
	file := strings.TrimPrefix(path.Clean(name), "/")
	if !path.IsAbs(name) {
		file = path.Join(beside, name)
	}
	if file == ".." || strings.HasPrefix(file, "../") {
		return "", nil, errors.New("it leads out of the build context")
	}
	data, err := readInside(c.dir, file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, fmt.Errorf("there is no %s in the build context %s", file, c.dir)
	case err != nil:
		return "", nil, err
	case file == self:
		return c.dockerfileName, data, nil
	case file == c.dockerfileName:
		file = "./" + file
	}
	return file, data, nil
}

// inside is the Dockerfile's path in the context; "" if it is not in there.
func (c *contexts) inside() string {
	if c.dockerfilePath == "" {
		return ""
	}
	dir, err := filepath.Abs(c.dir)
	if err != nil {
		return ""
	}
	file, err := filepath.Abs(c.dockerfilePath)
	if err != nil {
		return ""
	}
	rel, err := filepath.Rel(dir, file)
	if err != nil || !filepath.IsLocal(rel) {
		return ""
	}
	return filepath.ToSlash(rel)
}

// readInside reads a regular file in dir; no symbolic link leads out of it.
func readInside(dir, file string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// What is no regular file must not block.
	f, err := root.OpenFile(filepath.FromSlash(file), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", file)
	}
	return readAll(f)
}
