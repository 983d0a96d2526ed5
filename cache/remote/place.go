package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/internal/oci"
)

// Place is where a cache is kept: manifests and blobs. It is safe for
// concurrent use.
type Place interface {
	// String names the place for people.
	String() string
	// Origin is what layers from here have as Layer.Origin; manifest is the
	// digest of the manifest that lists them. [At] reads it.
	Origin(manifest oci.Digest) string
	// Manifest reads the cache's manifest, or with a digest one of those that
	// it lists. One that is not there is an fs.ErrNotExist.
	Manifest(ctx context.Context, d oci.Digest) ([]byte, error)
	// Blob opens a blob. Its bytes are not verified.
	Blob(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error)
	// Put sees to it that a blob is there. open is called if it is not, maybe
	// several times. origins are repositories that are known to have it.
	Put(ctx context.Context, d oci.Descriptor, open func() (io.ReadCloser, error), origins []string) error
	// Has reports whether a blob is there.
	Has(ctx context.Context, d oci.Descriptor) (bool, error)
	// Commit makes a manifest, all of whose blobs have been put, the cache's.
	Commit(ctx context.Context, manifest []byte) error
}

// Verify makes of a blob's bytes a reader that fails in place of io.EOF where
// they are not d's, and at the first byte too many.
func Verify(r io.ReadCloser, d oci.Descriptor) io.ReadCloser {
	return &verified{ReadCloser: r, want: d, hash: sha256.New()}
}

type verified struct {
	io.ReadCloser
	want oci.Descriptor
	hash hash.Hash
	n    int64
	err  error
}

func (v *verified) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.ReadCloser.Read(p)
	v.hash.Write(p[:n])
	v.n += int64(n)
	if v.n > v.want.Size {
		n, err = 0, fmt.Errorf("blob %s is larger than its %d bytes", v.want.Digest, v.want.Size)
	}
	if err == io.EOF {
		if got := digest.NewDigest(digest.SHA256, v.hash); v.n != v.want.Size || got != v.want.Digest {
			err = fmt.Errorf("blob %s: got %d bytes of digest %s, want %d", v.want.Digest, v.n, got, v.want.Size)
		}
	}
	v.err = err
	return n, err
}

// readBlob reads a blob of at most limit bytes, verified.
func readBlob(ctx context.Context, p Place, d oci.Descriptor, limit int64) ([]byte, error) {
	if d.Size < 0 || d.Size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes; at most %d are taken", d.Digest, d.Size, limit)
	}
	r, err := p.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(Verify(r, d))
}

// bytesOf is data as Put wants it.
func bytesOf(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func descriptor(mediaType string, data []byte) oci.Descriptor {
	return oci.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}
