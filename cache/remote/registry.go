package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/registry"
)

// inRegistry is a cache under a tag of a registry.
type inRegistry struct {
	client func() (*registry.Client, error)
	ref    oci.Reference
}

func (r *inRegistry) String() string { return r.ref.Familiar() }

// Origin is a reference, as that of a pulled layer.
func (r *inRegistry) Origin(manifest oci.Digest) string {
	return oci.Reference{Domain: r.ref.Domain, Path: r.ref.Path, Digest: manifest}.String()
}

func (r *inRegistry) Manifest(ctx context.Context, d oci.Digest) ([]byte, error) {
	c, err := r.client()
	if err != nil {
		return nil, err
	}
	ref := r.ref
	if d != "" {
		ref = ref.WithDigest(d)
	}
	data, _, err := c.Manifest(ctx, ref)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, fmt.Errorf("%w (%w)", err, fs.ErrNotExist)
	}
	return data, err
}

func (r *inRegistry) Blob(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	c, err := r.client()
	if err != nil {
		return nil, err
	}
	return c.Blob(ctx, r.ref, d)
}

func (r *inRegistry) Put(ctx context.Context, d oci.Descriptor, open func() (io.ReadCloser, error), origins []string) error {
	c, err := r.client()
	if err != nil {
		return err
	}
	mount := ""
	for _, o := range origins {
		if path, ok := strings.CutPrefix(o, r.ref.Domain+"/"); ok && path != r.ref.Path {
			mount = path
			break
		}
	}
	return c.PushBlob(ctx, r.ref, d, open, mount)
}

func (r *inRegistry) Has(ctx context.Context, d oci.Descriptor) (bool, error) {
	c, err := r.client()
	if err != nil {
		return false, err
	}
	return c.HasBlob(ctx, r.ref, d.Digest)
}

func (r *inRegistry) Commit(ctx context.Context, manifest []byte) error {
	c, err := r.client()
	if err != nil {
		return err
	}
	_, err = c.PushManifest(ctx, r.ref, specs.MediaTypeImageManifest, manifest)
	return err
}
