package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/container"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/internal/progress/display"
)

// runImage finds the image to run, pulls what of it is not here, and unpacks
// its layers. pull is "always", "missing" or "never".
func (g *globals) runImage(ctx context.Context, b *builder.Builder, name, pull string) (img container.Image, err error) {
	if pull == "never" {
		_, err := b.Images.Lookup(name)
		if _, kept := b.Store.Result(name); errors.Is(err, image.ErrNotFound) && kept != nil {
			return img, fmt.Errorf("no image %s is here, and --pull never is given", name)
		}
	}
	sink := &lateDisplay{g: g}
	defer func() { err = errors.Join(err, sink.close()) }()
	platform := oci.Platform{OS: "linux", Architecture: runtime.GOARCH}
	r, err := b.Runnable(ctx, name, platform, pull == "always", sink)
	if err != nil {
		return img, err
	}
	return container.Image{Name: r.Name, ID: r.ID, Config: r.Image.Config, Chain: r.Chain()}, nil
}

// lateDisplay shows progress once there is any: an image that is here is run
// without a word.
type lateDisplay struct {
	g    *globals
	once sync.Once
	show display.Display
}

// Emit implements progress.Sink.
func (l *lateDisplay) Emit(e progress.Event) {
	l.once.Do(func() {
		if f, ok := l.g.stderr.(*os.File); ok {
			if d, err := display.New("auto", f, display.Options{NoSummary: true}); err == nil {
				l.show = d
			}
		}
	})
	if l.show != nil {
		l.show.Emit(e)
	}
}

func (l *lateDisplay) close() error {
	if l.show == nil {
		return nil
	}
	return l.show.Close()
}
