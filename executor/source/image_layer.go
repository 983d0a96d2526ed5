package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/registry"
)

// layers are handles on the layers of img, which ref names.
func (m *Images) layers(ref oci.Reference, img Image) ([]oci.Layer, error) {
	blobs, ids := img.Manifest.Layers, img.Config.RootFS.DiffIDs
	if len(blobs) != len(ids) {
		return nil, fmt.Errorf("image %s: %d layers in the manifest, %d in the configuration", ref.Familiar(), len(blobs), len(ids))
	}
	out := make([]oci.Layer, len(blobs))
	var chain oci.Digest
	for i, b := range blobs {
		if err := ids[i].Validate(); err != nil {
			return nil, fmt.Errorf("image %s: layer %d: diff ID: %w", ref.Familiar(), i+1, err)
		}
		if err := b.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("image %s: layer %d: %w", ref.Familiar(), i+1, err)
		}
		if strings.HasSuffix(b.MediaType, "+encrypted") {
			return nil, fmt.Errorf("image %s: layer %d is encrypted, which is not supported", ref.Familiar(), i+1)
		}
		chain = oci.ChainID(chain, ids[i])
		if l, ok := m.built(b, ids[i], chain); ok {
			out[i] = l
			continue
		}
		out[i] = m.layer(ref, b, ids[i])
	}
	return out, nil
}

// built is a layer that was made here: it stands in its manifest as the tar,
// without a blob.
func (m *Images) built(b oci.Descriptor, diffID, chain oci.Digest) (oci.Layer, bool) {
	if b.Digest != diffID || m.o.Built == nil {
		return oci.Layer{}, false
	}
	l, ok := m.o.Built(chain)
	if ok {
		// What is built upon it has the same keys as on a machine that pulled
		// the image: its content is its diff ID.
		l.Content = diffID
	}
	return l, ok
}

func (m *Images) layer(ref oci.Reference, b oci.Descriptor, diffID oci.Digest) oci.Layer {
	l := oci.Layer{
		ID:      strings.Replace(diffID.String(), ":", "-", 1),
		Content: diffID, DiffID: diffID, Blob: &b, Origin: ref.String(),
	}
	if b.Digest == diffID {
		l.TarSize = b.Size
	}
	l.Compressed = func(ctx context.Context) (io.ReadCloser, error) { return m.blob(ctx, ref, b) }
	l.Tar = openTar(diffID, l.Compressed)
	return l
}

// blob opens a blob, verified: its reader fails in place of io.EOF where the
// bytes are wrong. It comes from the store, else from the registry and into the
// store on its way. An error that wraps image.ErrDamaged says that the store's
// copy is bad; the next call fetches the blob anew.
func (m *Images) blob(ctx context.Context, ref oci.Reference, d oci.Descriptor) (io.ReadCloser, error) {
	return m.kept(ctx, d, ref.Familiar(), ref.Repository(), func() (io.ReadCloser, error) { return m.download(ctx, ref, d) })
}

// kept opens a blob of the store, else what fetch opens, which goes into the
// store on its way; repository, if not empty, is where it is from.
func (m *Images) kept(ctx context.Context, d oci.Descriptor, from, repository string, fetch func() (io.ReadCloser, error)) (io.ReadCloser, error) {
	m.mu.Lock()
	damaged := m.damaged[d.Digest]
	m.mu.Unlock()
	if !damaged && m.store.Renew(d) {
		r, err := m.store.Open(d.Digest)
		if err == nil {
			return &stored{ReadCloser: r, m: m, digest: d.Digest}, nil
		}
		if !errors.Is(err, image.ErrNotFound) {
			return nil, err
		}
	}
	r, err := fetch()
	if err != nil {
		return nil, err
	}
	w, err := m.store.Ingest(ctx)
	if err != nil {
		r.Close()
		return nil, err
	}
	return &download{m: m, r: r, w: w, desc: d, from: from, repository: repository}, nil
}

// download asks ref's registry and then, for an image that was named anew here,
// wherever the blob is known to be.
func (m *Images) download(ctx context.Context, ref oci.Reference, d oci.Descriptor) (io.ReadCloser, error) {
	if m.o.Offline {
		return nil, fmt.Errorf("layer %s of %s: %w here, and registries are not asked (offline)", d.Digest, ref.Familiar(), image.ErrNotFound)
	}
	var failed error
	for _, repository := range append([]string{ref.Repository()}, m.store.Origins(d.Digest)...) {
		at, err := oci.ParseReference(repository + "@" + ref.Digest.String())
		if err != nil {
			continue
		}
		r, err := m.client.RawBlob(ctx, at, d)
		if err == nil {
			return r, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if failed == nil {
			failed = err
		}
	}
	return nil, failed
}

// stored reads a blob of the store, and remembers if it is damaged.
type stored struct {
	io.ReadCloser
	m      *Images
	digest oci.Digest
}

func (s *stored) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if errors.Is(err, image.ErrDamaged) {
		s.m.mu.Lock()
		s.m.damaged[s.digest] = true
		s.m.mu.Unlock()
	}
	return n, err
}

// download reads a registry's blob and puts it into the store at its end.
type download struct {
	m          *Images
	r          io.ReadCloser // of a registry a *registry.BlobReader
	w          *image.Writer // computes the digest
	desc       oci.Descriptor
	from       string    // for people
	repository string    // empty: from no registry
	told       time.Time // when Progress was last called
	done       bool
}

func (d *download) Read(p []byte) (int, error) {
	if d.done {
		return 0, io.EOF
	}
	n, err := d.r.Read(p)
	if _, werr := d.w.Write(p[:n]); werr != nil {
		return n, werr
	}
	if err == io.EOF {
		if err := d.finish(); err != nil {
			return n, err
		}
		d.done = true
	}
	d.tell(err == io.EOF)
	return n, err
}

func (d *download) finish() error {
	if got := d.w.Digest(); got != d.desc.Digest {
		if r, ok := d.r.(*registry.BlobReader); ok {
			return r.Mismatch(got)
		}
		return fmt.Errorf("%s: blob %s: got the digest %s", d.from, d.desc.Digest, got)
	}
	if err := d.w.Commit(d.desc); err != nil {
		return err
	}
	d.m.mu.Lock()
	delete(d.m.damaged, d.desc.Digest)
	d.m.mu.Unlock()
	if d.repository == "" {
		return nil
	}
	return d.m.store.AddOrigin(d.desc.Digest, d.repository)
}

func (d *download) tell(end bool) {
	if f := d.m.o.Progress; f != nil {
		if now := time.Now(); end || now.Sub(d.told) > 100*time.Millisecond {
			d.told = now
			f(d.desc, d.w.Size(), end)
		}
	}
}

func (d *download) Close() error {
	return errors.Join(d.r.Close(), d.w.Close())
}

// Reopen gives a layer of an image, as a record kept it, the functions that
// open its bytes.
func (m *Images) Reopen(l oci.Layer) (oci.Layer, error) {
	if strings.Contains(l.Origin, "://") {
		return m.elsewhere(l)
	}
	ref, err := oci.ParseReference(l.Origin)
	if err != nil {
		return l, err
	}
	open := m.layer(ref, *l.Blob, l.DiffID)
	l.Tar, l.Compressed = open.Tar, open.Compressed
	return l, nil
}

// elsewhere is Reopen of a layer whose blob no registry has.
func (m *Images) elsewhere(l oci.Layer) (oci.Layer, error) {
	if m.o.Elsewhere == nil {
		return l, fmt.Errorf("%s is not asked here", l.Origin)
	}
	d := *l.Blob
	l.Compressed = func(ctx context.Context) (io.ReadCloser, error) {
		return m.kept(ctx, d, l.Origin, "", func() (io.ReadCloser, error) { return m.o.Elsewhere(ctx, l.Origin, d) })
	}
	l.Tar = openTar(l.DiffID, l.Compressed)
	return l, nil
}
