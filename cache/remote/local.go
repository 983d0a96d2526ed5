package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/internal/flock"
	"github.com/861fb494/build/internal/oci"
)

// inLayout is a cache in an OCI image layout, a directory.
type inLayout struct {
	dir    string
	tag    string
	digest oci.Digest // of the manifest; empty: what the tag is
}

func (l *inLayout) String() string { return l.dir }

func (l *inLayout) Origin(oci.Digest) string {
	dir, err := filepath.Abs(l.dir)
	if err != nil {
		dir = l.dir
	}
	return (&url.URL{Scheme: "cache+local", Path: dir}).String()
}

func (l *inLayout) path(d oci.Digest) string {
	return filepath.Join(l.dir, specs.ImageBlobsDir, "sha256", d.Encoded())
}

func (l *inLayout) Manifest(_ context.Context, d oci.Digest) ([]byte, error) {
	if d == "" {
		d = l.digest
	}
	if d == "" {
		x, err := l.index()
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(x.Manifests, l.named)
		if i < 0 {
			return nil, fmt.Errorf("no cache is called %q: %w", l.tag, fs.ErrNotExist)
		}
		if buildkit(x.Manifests[i].ArtifactType) {
			return nil, errBuildKit
		}
		d = x.Manifests[i].Digest
	}
	if !isDigest(d, "sha256") {
		return nil, fmt.Errorf("manifest %.80q is not a digest", d)
	}
	f, err := os.Open(l.path(d))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && st.Size() > maxManifest {
		err = fmt.Errorf("its manifest has %d bytes; at most %d are taken", st.Size(), maxManifest)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(Verify(f, oci.Descriptor{Digest: d, Size: st.Size()}))
}

func (l *inLayout) named(d oci.Descriptor) bool {
	return d.Annotations[specs.AnnotationRefName] == l.tag
}

func (l *inLayout) index() (oci.Index, error) {
	var x oci.Index
	f, err := os.Open(filepath.Join(l.dir, specs.ImageIndexFile))
	if err != nil {
		return x, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err == nil {
		err = json.Unmarshal(data, &x)
	}
	if err != nil {
		return x, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return x, nil
}

func (l *inLayout) Blob(_ context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	return os.Open(l.path(d.Digest))
}

func (l *inLayout) Has(_ context.Context, d oci.Descriptor) (bool, error) {
	st, err := os.Stat(l.path(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Size() == d.Size, err
}

func (l *inLayout) Put(ctx context.Context, d oci.Descriptor, open func() (io.ReadCloser, error), _ []string) error {
	if has, err := l.Has(ctx, d); err != nil || has {
		return err
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	return l.write(l.path(d.Digest), &ending{ctx, Verify(r, d)})
}

// write writes a file all or nothing.
func (l *inLayout) write(path string, r io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

// Commit replaces what the tag is in index.json. Others may do so at the same
// time, for tags of their own.
func (l *inLayout) Commit(ctx context.Context, manifest []byte) error {
	d := descriptor(specs.MediaTypeImageManifest, manifest)
	if err := l.Put(ctx, d, bytesOf(manifest), nil); err != nil {
		return err
	}
	d.ArtifactType = ArtifactType
	d.Annotations = map[string]string{specs.AnnotationRefName: l.tag}
	dir, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := flock.Alone(dir); err != nil {
		return err
	}
	x, err := l.index()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	x.MediaType, x.SchemaVersion = specs.MediaTypeImageIndex, 2
	x.Manifests = append(slices.DeleteFunc(x.Manifests, l.named), d)
	data, err := encode(x)
	if err != nil {
		return err
	}
	layout, err := encode(specs.ImageLayout{Version: specs.ImageLayoutVersion})
	if err != nil {
		return err
	}
	open, _ := bytesOf(layout)()
	if err := l.write(filepath.Join(l.dir, specs.ImageLayoutFile), open); err != nil {
		return err
	}
	open, _ = bytesOf(data)()
	return l.write(filepath.Join(l.dir, specs.ImageIndexFile), open)
}
