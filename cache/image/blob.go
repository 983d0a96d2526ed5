package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/internal/oci"
)

// maxDocument bounds the manifests, indexes and configurations that are read
// into memory, in bytes: what registries accept for manifests, and more than
// any real configuration.
const maxDocument = 16 << 20

// path is where blob d is. Digests come from foreign manifests, so nothing but
// a well-formed sha256 becomes a name.
func (s *Store) path(d oci.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("blob %q: %w", string(d), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("blob %s: only sha256 is stored", d)
	}
	return filepath.Join(s.blobDir(), d.Encoded()), nil
}

// Has reports whether blob d is in the store. It does not read it.
func (s *Store) Has(d oci.Digest) bool {
	p, err := s.path(d)
	if err != nil {
		return false
	}
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular()
}

// Size is the size of blob d in bytes; a wrapped ErrNotFound if it is absent.
func (s *Store) Size(d oci.Digest) (int64, error) {
	p, err := s.path(d)
	if err != nil {
		return 0, err
	}
	st, err := os.Stat(p)
	if err != nil {
		return 0, blobError(d, err)
	}
	return st.Size(), nil
}

func blobError(d oci.Digest, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("blob %s: %w in the image store", d, ErrNotFound)
	}
	return fmt.Errorf("blob %s: %w", d, err)
}

// Open opens blob d. The bytes are verified while they are read: where they
// turn out not to be d, the Read that would give io.EOF gives a wrapped
// ErrDamaged, so bytes must not be used for good before io.EOF. The blob is
// removed then, so that who needs it gets it from elsewhere.
func (s *Store) Open(d oci.Digest) (io.ReadCloser, error) { return s.open(d, !s.keeping.Load()) }

// open is Open; a damaged blob is removed only with drop.
func (s *Store) open(d oci.Digest, drop bool) (io.ReadCloser, error) {
	p, err := s.path(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, blobError(d, err)
	}
	return &verified{f: f, want: d, hash: sha256.New(), drop: drop}, nil
}

// verified is a blob that is checked as it is read.
type verified struct {
	f    *os.File
	want oci.Digest
	hash hash.Hash
	drop bool // remove it if it is damaged
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.f.Read(p)
	v.hash.Write(p[:n])
	switch {
	case err == io.EOF:
		if digest.NewDigest(digest.SHA256, v.hash) != v.want {
			if v.drop {
				_ = os.Remove(v.f.Name()) // else it is found to be damaged again
			}
			return n, fmt.Errorf("blob %s: %w on disk", v.want, ErrDamaged)
		}
	case err != nil:
		return n, blobError(v.want, err)
	}
	return n, err
}

func (v *verified) Close() error { return v.f.Close() }

// Read is the whole of blob d, verified. It is for documents, not for layers:
// above 16 MiB it is an error.
func (s *Store) Read(d oci.Digest) ([]byte, error) {
	r, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxDocument {
		return nil, fmt.Errorf("blob %s: larger than %d bytes, which no manifest or configuration is", d, maxDocument)
	}
	return data, nil
}

// Put stores data and describes it.
func (s *Store) Put(mediaType string, data []byte) (oci.Descriptor, error) {
	desc := oci.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if s.Renew(desc) {
		// It may have been damaged since; writing a small blob anew mends it.
		if got, err := s.Read(desc.Digest); err == nil && bytes.Equal(got, data) {
			return desc, nil
		}
	}
	w, err := s.Ingest(context.Background())
	if err != nil {
		return desc, err
	}
	defer w.Close()
	if _, err := w.Write(data); err != nil {
		return desc, err
	}
	return desc, w.Commit(desc)
}

// Renew reports whether blob d is in the store, with the size that d has where
// it is not 0, and if so protects it from Prune for its grace time, as if it
// had just been written.
func (s *Store) Renew(d oci.Descriptor) bool {
	p, err := s.path(d.Digest)
	if err != nil {
		return false
	}
	ok := false
	_ = s.rlock(func() error {
		st, err := os.Stat(p)
		if err != nil || !st.Mode().IsRegular() || d.Size != 0 && st.Size() != d.Size {
			return err
		}
		now := s.now()
		if err := os.Chtimes(p, now, now); err != nil {
			return err
		}
		ok = true
		return nil
	})
	return ok
}

// Writer takes the bytes of one blob. Nothing is visible until Commit.
type Writer struct {
	ctx  context.Context
	s    *Store
	f    *Draft // nil once committed or closed
	hash hash.Hash
	size int64
}

// Ingest begins a blob. Several may be written at once, the same one too. The
// caller closes the Writer always, after Commit as well. Writes fail once ctx
// is done.
func (s *Store) Ingest(ctx context.Context) (*Writer, error) {
	f, err := s.draft()
	if err != nil {
		return nil, fmt.Errorf("write blob: %w", err)
	}
	return &Writer{ctx: ctx, s: s, f: f, hash: sha256.New()}, nil
}

// Write appends p to the blob.
func (w *Writer) Write(p []byte) (int, error) {
	if err := context.Cause(w.ctx); err != nil {
		return 0, fmt.Errorf("write blob: %w", err)
	}
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("write blob: %w", err)
	}
	return n, nil
}

// Digest is that of the bytes so far.
func (w *Writer) Digest() oci.Digest { return digest.NewDigest(digest.SHA256, w.hash) }

// Size is the number of bytes so far.
func (w *Writer) Size() int64 { return w.size }

// Commit gives the blob its name. Bytes that are not what want says, or of
// another size where want has one, are an error and are thrown away. Media
// type and the rest of want do not matter.
func (w *Writer) Commit(want oci.Descriptor) error {
	if w.f == nil {
		return errors.New("write blob: already committed")
	}
	got := w.Digest()
	if got != want.Digest {
		w.Close()
		return fmt.Errorf("write blob %s: the bytes have digest %s", want.Digest, got)
	}
	if want.Size > 0 && want.Size != w.size {
		w.Close()
		return fmt.Errorf("write blob %s: %d bytes instead of %d", want.Digest, w.size, want.Size)
	}
	p, err := w.s.path(got)
	if err != nil {
		w.Close()
		return err
	}
	defer w.Close()
	if err := w.f.Sync(); err != nil {
		return fmt.Errorf("write blob %s: %w", got, err)
	}
	// The shared lock orders the naming against a Prune that has found an
	// older blob of the same name to be garbage.
	err = w.s.rlock(func() error {
		if err := os.MkdirAll(w.s.blobDir(), 0o755); err != nil {
			return err
		}
		return w.f.Commit(p)
	})
	if err != nil {
		return fmt.Errorf("write blob %s: %w", got, err)
	}
	return nil
}

// Close throws away what has not been committed. It may be called twice.
func (w *Writer) Close() error {
	if w.f != nil {
		w.f.Discard()
		w.f = nil
	}
	return nil
}
