package remote

import (
	"context"
	"io"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/861fb494/build/cache/chunked"
	"github.com/861fb494/build/internal/oci"
)

// upload sends packs as they are made. How many wait is not bounded: the mount is
// held until it has been read, and not until it is sent.
type upload struct {
	x      *mountExport
	packer *chunked.Packer
	group  *errgroup.Group
	cancel context.CancelFunc
	slots  chan struct{}
	packs  []oldPack
	files  []string
}

func (x *mountExport) newUpload(ctx context.Context) *upload {
	ctx, cancel := context.WithCancel(ctx)
	g, gctx := errgroup.WithContext(ctx)
	u := &upload{x: x, group: g, cancel: cancel, slots: make(chan struct{}, uploads)}
	u.packer = chunked.NewPacker(x.o.Temp, x.salt, func(p chunked.Pack) {
		d := oci.Descriptor{MediaType: packType, Digest: p.Digest, Size: p.Size}
		u.packs = append(u.packs, oldPack{Descriptor: d, chunks: p.Chunks})
		u.files = append(u.files, p.File)
		g.Go(func() error {
			u.slots <- struct{}{}
			defer func() { <-u.slots }()
			defer os.Remove(p.File)
			if err := context.Cause(gctx); err != nil {
				return err
			}
			open := func() (io.ReadCloser, error) { return os.Open(p.File) }
			if err := x.place.Put(gctx, d, x.counted(open), nil); err != nil {
				return placeError{err}
			}
			return nil
		})
	})
	return u
}

// wait waits until all packs are there.
func (u *upload) wait() ([]oldPack, error) { return u.packs, u.group.Wait() }

// abandon gives up what has not been sent.
func (u *upload) abandon() {
	u.packer.Abandon()
	u.cancel()
	_ = u.group.Wait() // it has been waited for, or nobody wants to know
	for _, f := range u.files {
		os.Remove(f)
	}
}
