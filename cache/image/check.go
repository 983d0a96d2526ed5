package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/internal/oci"
)

// Check reads everything and returns what is wrong: blobs that are not what
// their name says, entries whose manifest or configuration is missing, an index
// that is none. It is slow.
func (s *Store) Check(ctx context.Context) []error {
	s.keeping.Store(true)
	defer s.keeping.Store(false)
	return s.check(ctx, false)
}

// Mend is Check that also drops what it finds: blobs and entries are removed, the
// index is recovered as far as it can be. The errors say so.
func (s *Store) Mend(ctx context.Context) []error { return s.check(ctx, true) }

func (s *Store) check(ctx context.Context, mend bool) []error {
	var bad []error
	note := func(err, done error) {
		switch {
		case err == nil:
		case !mend:
			bad = append(bad, err)
		case done != nil:
			bad = append(bad, fmt.Errorf("%w: it cannot be dropped: %w", err, done))
		default:
			bad = append(bad, fmt.Errorf("%w: dropped", err))
		}
	}
	if err := s.layout(); err != nil {
		note(err, when(mend, s.writeLayout))
	}
	// Before the entries, some of which may be of no use then.
	files, err := os.ReadDir(s.blobDir())
	note(err, nil)
	for _, e := range files {
		if err := context.Cause(ctx); err != nil {
			return append(bad, err)
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		path := filepath.Join(s.blobDir(), e.Name())
		if d.Validate() != nil {
			bad = append(bad, fmt.Errorf("image store: %s is no blob", path))
			continue
		}
		if err := s.checkBlob(d); err != nil {
			note(err, when(mend, func() error { return os.Remove(path) }))
		}
	}
	idx, err := readIndex(s.indexPath())
	if err != nil {
		note(err, when(mend, func() (err error) { idx, err = s.index(); return err }))
	}
	if idx == nil {
		return bad
	}
	for _, m := range idx.Manifests {
		if err := s.checkImage(m); err != nil {
			note(fmt.Errorf("image %s: %w", nameOf(m), err), when(mend, func() error {
				_, err := s.Remove(func(n Named) bool { return n.Desc.Digest == m.Digest && n.Ref == nameOf(m) })
				return err
			}))
		}
	}
	return bad
}

func when(do bool, f func() error) error {
	if do {
		return f()
	}
	return nil
}

func (s *Store) checkImage(d oci.Descriptor) error {
	list, err := s.Manifests(d)
	for _, m := range list {
		var man oci.Manifest
		if man, err = s.Manifest(m.Digest); err == nil {
			_, err = s.Config(man.Config.Digest)
		}
		if err != nil {
			return err
		}
	}
	return err
}

func (s *Store) checkBlob(d oci.Digest) error {
	r, err := s.open(d, false)
	if errors.Is(err, ErrNotFound) {
		return nil // removed since it was listed
	}
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

func (s *Store) layoutPath() string { return filepath.Join(s.dir, specs.ImageLayoutFile) }

// layout reports a layout file that is missing or is none, as other tools would.
func (s *Store) layout() error {
	data, err := os.ReadFile(s.layoutPath())
	var l specs.ImageLayout
	if err == nil && (json.Unmarshal(data, &l) != nil || l.Version == "") {
		err = ErrDamaged
	}
	if err != nil {
		return fmt.Errorf("image store: %s: %w", s.layoutPath(), err)
	}
	return nil
}

func (s *Store) writeLayout() error {
	return s.writeFile(s.layoutPath(), []byte(`{"imageLayoutVersion":"`+specs.ImageLayoutVersion+`"}`+"\n"))
}

// seal adds the line by which unseal tells whether data is whole.
func seal(data []byte) []byte {
	return append(bytes.Clone(data), "\n"+digest.FromBytes(data).String()+"\n"...)
}

func unseal(b []byte) (data []byte, ok bool) {
	n := len(b) - len("\n"+"sha256:"+"\n") - 2*32
	if n < 0 || !bytes.Equal(seal(b[:n]), b) {
		return nil, false
	}
	return b[:n], true
}
