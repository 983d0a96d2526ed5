package source

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/readahead"
)

// openTar opens the tar of the layer whose blob is what open opens.
func openTar(diffID oci.Digest, open func(context.Context) (io.ReadCloser, error)) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		// Who closes it does not wait for a server that sends nothing.
		ctx, cancel := context.WithCancel(ctx)
		blob, err := open(ctx)
		if err != nil {
			cancel()
			return nil, err
		}
		return newTar(cancel, blob, diffID)
	}
}

// tarReader is a layer on its way out of its blob. Each stage has a goroutine of
// its own: what brings the blob, what decompresses it, what hashes the tar.
type tarReader struct {
	*readahead.Reader // of a verifier
	plain, blob       *readahead.Reader
	cancel            context.CancelFunc
	below             []io.Closer
}

// newTar closes blob, and calls cancel, if it fails and when it is closed. The
// compression is told by the bytes, as media types are not always right.
func newTar(cancel context.CancelFunc, blob io.ReadCloser, diffID oci.Digest) (io.ReadCloser, error) {
	t := &tarReader{cancel: cancel, blob: readahead.New(blob), below: []io.Closer{blob}}
	r, err := image.Decompress(io.NopCloser(t.blob))
	if err != nil {
		err = fmt.Errorf("layer %s: %w", diffID, cause(t.blob, err))
		t.Close()
		return nil, err
	}
	t.below = []io.Closer{r, blob}
	t.plain = readahead.New(r)
	t.Reader = readahead.New(&verifier{tar: t.plain, blob: t.blob, want: diffID, hash: diffID.Algorithm().Hash()})
	return t, nil
}

// Close ends all stages, the last one first: it may be waiting for those before.
func (t *tarReader) Close() error {
	t.cancel()
	var errs []error
	for _, r := range []*readahead.Reader{t.Reader, t.plain, t.blob} {
		if r != nil {
			errs = append(errs, r.Close())
		}
	}
	for _, c := range t.below {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// verifier verifies a layer's diff ID at its end.
type verifier struct {
	tar, blob io.Reader
	want      oci.Digest
	hash      hash.Hash
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.tar.Read(p)
	v.hash.Write(p[:n])
	switch {
	case err == io.EOF:
		if got := digest.NewDigest(v.want.Algorithm(), v.hash); got != v.want {
			err = fmt.Errorf("layer %s: decompressed it has digest %s", v.want, got)
		}
	case err != nil:
		err = fmt.Errorf("layer %s: %w", v.want, cause(v.blob, err))
	}
	return n, err
}

// cause is why a blob cannot be decompressed: that it is the wrong one, or
// damaged, shows at its end; else it is err.
func cause(blob io.Reader, err error) error {
	if _, wrong := io.Copy(io.Discard, blob); wrong != nil {
		return wrong
	}
	return err
}
