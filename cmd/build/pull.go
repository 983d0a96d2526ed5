package main

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"time"

	specs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// downloads is how many layers are downloaded at a time, as many as Docker
// downloads.
const downloads = 3

func newPullCommand(g *globals) *cobra.Command {
	var platform string
	var quiet bool
	c := &cobra.Command{
		Use:   "pull [flags] IMAGE",
		Short: "Download an image",
		Args:  arguments,
		RunE: func(c *cobra.Command, args []string) error {
			ref, err := oci.ParseReference(args[0])
			if err != nil {
				return err
			}
			want := oci.Platform{OS: "linux", Architecture: runtime.GOARCH}
			if platform != "" {
				if want, err = onePlatform(platform); err != nil {
					return err
				}
			}
			return g.withBuilder(c.Context(), func(b *builder.Builder) error {
				var d oci.Descriptor
				err := g.withProgress(quiet, "pull "+ref.Familiar(), func(sink progress.Sink, step progress.Step) (err error) {
					d, err = pull(c.Context(), b, ref, want, sink, step)
					return err
				})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(g.stdout, "%s@%s\n", ref.Repository(), d.Digest)
				return err
			})
		},
	}
	c.Flags().StringVar(&platform, "platform", "", "`OS/ARCH[/VARIANT]` (default: this machine's)")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}

// pull downloads an image whole, and then gives it its name.
func pull(ctx context.Context, b *builder.Builder, ref oci.Reference, p oci.Platform, sink progress.Sink, step progress.Step) (oci.Descriptor, error) {
	none := oci.Descriptor{}
	client, err := b.Registry()
	if err != nil {
		return none, err
	}
	images := source.NewImages(b.Images, client, source.ImageOptions{
		Pull: true,
		Progress: func(d oci.Descriptor, current int64, done bool) {
			sink.Emit(progress.Counter{
				Step: step, Name: d.Digest.String(), Current: current, Total: d.Size, Unit: "B", Done: done, Time: time.Now(),
			})
		},
	})
	pinned, err := images.Pin(ctx, llb.Source{Scheme: llb.Registry, Ref: ref.String(), Platform: p})
	if err != nil {
		return none, err
	}
	img, err := images.Image(ctx, pinned)
	if err != nil {
		return none, err
	}
	content, err := images.Open(ctx, pinned)
	if err != nil {
		return none, err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(downloads)
	for _, l := range content.Layers {
		group.Go(func() error { return download(gctx, b.Images, l) })
	}
	if err := group.Wait(); err != nil {
		return none, err
	}
	d, err := descriptor(b.Images, pinned.Digest, img.Desc)
	if err != nil {
		return none, err
	}
	return d, b.Images.Set(ref, d)
}

// download reads a layer to its end, which puts it into the store, unless it is
// there.
func download(ctx context.Context, s *image.Store, l oci.Layer) error {
	if l.Compressed == nil || l.Blob != nil && s.Renew(*l.Blob) {
		return nil
	}
	r, err := l.Compressed(ctx)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return err
}

// descriptor describes the manifest or index d; manifest is the one chosen.
func descriptor(s *image.Store, d oci.Digest, manifest oci.Descriptor) (oci.Descriptor, error) {
	if d == manifest.Digest {
		return manifest, nil
	}
	size, err := s.Size(d)
	if err != nil {
		return oci.Descriptor{}, err
	}
	idx, err := s.Index(d)
	if err != nil {
		return oci.Descriptor{}, err
	}
	if idx.MediaType == "" {
		idx.MediaType = specs.MediaTypeImageIndex
	}
	return oci.Descriptor{MediaType: idx.MediaType, Digest: d, Size: size}, nil
}
