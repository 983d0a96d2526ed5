package exporter

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	"github.com/861fb494/build/internal/oci"
)

// growing is a blob that is being made in a file, and can be read meanwhile.
type growing struct {
	file *os.File

	mu      sync.Mutex
	size    int64         // written so far
	changed chan struct{} // closed when any of this changes
	ended   bool
	blob    blob
	err     error
}

func newGrowing(f *os.File) *growing { return &growing{file: f, changed: make(chan struct{})} }

// Write implements io.Writer.
func (g *growing) Write(p []byte) (int, error) {
	n, err := g.file.Write(p)
	g.change(func() { g.size += int64(n) })
	return n, err
}

// end says what has come out, or why nothing has.
func (g *growing) end(b blob, err error) {
	g.change(func() { g.ended, g.blob, g.err = true, b, err })
}

func (g *growing) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	close(g.changed)
	g.changed = make(chan struct{})
}

// wait waits for the end.
func (g *growing) wait(ctx context.Context) (blob, error) {
	for {
		g.mu.Lock()
		ended, changed := g.ended, g.changed
		g.mu.Unlock()
		if ended {
			return g.blob, g.err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return blob{}, context.Cause(ctx)
		}
	}
}

// desc waits for the end too.
func (g *growing) desc(ctx context.Context) (oci.Descriptor, error) {
	b, err := g.wait(ctx)
	return b.desc, err
}

// open reads the blob from its beginning to its end, also where that is to come.
func (g *growing) open() (io.ReadCloser, error) {
	f, err := os.Open(g.file.Name())
	if err != nil {
		return nil, err
	}
	return &follower{File: f, g: g, closed: make(chan struct{})}, nil
}

type follower struct {
	*os.File
	g      *growing
	at     int64
	closed chan struct{}
	once   sync.Once
}

// Read waits for bytes that are to come, until Close is called.
func (f *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		f.g.mu.Lock()
		left, ended, err, changed := f.g.size-f.at, f.g.ended, f.g.err, f.g.changed
		f.g.mu.Unlock()
		switch {
		case ended && err != nil:
			return 0, err
		case left > 0:
			n, err := f.ReadAt(p[:min(int64(len(p)), left)], f.at)
			f.at += int64(n)
			return n, err
		case ended:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-f.closed:
			return 0, errors.New("closed")
		}
	}
}

// Close may be called during a Read.
func (f *follower) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.File.Close()
}
