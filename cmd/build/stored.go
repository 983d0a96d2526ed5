package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"github.com/861fb494/build/exporter"
	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/internal/progress/display"
)

// compressionFlags are those of commands that compress layers.
type compressionFlags struct {
	method string
	level  *int
	force  bool
}

func (c *compressionFlags) declare(f *pflag.FlagSet) {
	f.StringVar(&c.method, "compression", "gzip", "`method` for layers built here: gzip, zstd or uncompressed")
	f.Var(optional[int]{&c.level, strconv.Atoi}, "compression-level", "the compressor's `level`: gzip 0 to 9, zstd 1 to 22")
	f.BoolVar(&c.force, "force-compression", false, "compress layers that were pulled anew, too")
}

// attrs are the flags as an output's attributes.
func (c *compressionFlags) attrs() map[string]string {
	a := map[string]string{"compression": c.method}
	if c.level != nil {
		a["compression-level"] = strconv.Itoa(*c.level)
	}
	if c.force {
		a["force-compression"] = "true"
	}
	return a
}

// saveImages puts images of the store out, with the layers that the cache has.
func saveImages(ctx context.Context, b *builder.Builder, list []exporter.Stored, out exporter.Output, o exporter.Options) (oci.Descriptor, error) {
	temp, err := b.Store.TempDir()
	if err != nil {
		return oci.Descriptor{}, err
	}
	client, err := b.Registry()
	if err != nil {
		return oci.Descriptor{}, err
	}
	o.Store, o.Temp, o.Registry = b.Images, temp, client
	find := func(chain oci.Digest) (oci.Layer, bool) {
		l, ok := b.Store.Built(chain)
		files := l
		l.Tar = func(ctx context.Context) (io.ReadCloser, error) { return b.Store.Tar(ctx, files) }
		return l, ok
	}
	return exporter.Save(ctx, list, find, out, o)
}

// withBuilder opens the state directory for f.
func (g *globals) withBuilder(ctx context.Context, f func(*builder.Builder) error) error {
	b, err := g.open(ctx, "", "")
	if err != nil {
		return err
	}
	return errors.Join(f(b), b.Close(ctx))
}

// withProgress shows how f, one step called name, comes along.
func (g *globals) withProgress(quiet bool, name string, f func(progress.Sink, progress.Step) error) error {
	show := display.Quiet(g.stderr)
	if file, ok := g.stderr.(*os.File); ok && !quiet {
		var err error
		if show, err = display.New("auto", file, display.Options{Title: name, NoSummary: true}); err != nil {
			return err
		}
	}
	step := progress.Step(name)
	show.Emit(progress.Started{Step: step, Name: name, Time: time.Now()})
	err := f(show, step)
	shown := err
	if err != nil && !errors.Is(err, context.Canceled) {
		shown = errors.New("failed") // what failed is told once, as the command's error
	}
	show.Emit(progress.Done{Step: step, Err: shown, Time: time.Now()})
	return errors.Join(err, show.Close())
}
