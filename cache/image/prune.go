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
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/internal/oci"
)

// Grace is how long Prune spares a blob that nothing refers to: longer than a
// build takes between writing its first blob and naming its image.
const Grace = 24 * time.Hour

// recordGrace is how long the record of a compressed layer is kept unused.
const recordGrace = 90 * 24 * time.Hour

// Pruned is what Prune removed.
type Pruned struct {
	Blobs int
	Bytes int64
}

// Prune removes the entries that are forgotten, and the blobs that no entry of the
// index refers to, that keep (nil: none) does not want, and that were neither
// written nor renewed within grace.
func (s *Store) Prune(ctx context.Context, grace time.Duration, keep func(oci.Digest) bool) (Pruned, error) {
	if _, err := s.Remove(func(n Named) bool { return s.Forgotten(n, grace) }); err != nil {
		return Pruned{}, fmt.Errorf("prune image store: %w", err)
	}
	return s.prune(ctx, nil, grace, keep)
}

// Forgotten reports whether an entry has no name, and its manifest was neither
// written nor renewed within grace. Builds in a script make such images by the
// hundred, and nobody else removes them.
func (s *Store) Forgotten(n Named, grace time.Duration) bool {
	if n.HasName() {
		return false
	}
	path, err := s.path(n.Desc.Digest)
	if err != nil {
		return false
	}
	st, err := os.Stat(path)
	return err == nil && s.now().Sub(st.ModTime()) >= grace
}

// Garbage is what Prune would remove, but for what is wanted of it.
func (s *Store) Garbage(ctx context.Context, grace time.Duration) (p Pruned, err error) {
	err = s.lock(func() error {
		live, err := s.live(ctx, func(n Named) bool { return s.Forgotten(n, grace) })
		if err == nil {
			p, err = s.sweep(ctx, grace, func(d oci.Digest) bool { return live[d] }, func(string) error { return nil })
		}
		return err
	})
	if err != nil {
		return p, fmt.Errorf("look for garbage in the image store: %w", err)
	}
	return p, nil
}

// live is what entries of the index refer to, but for those to skip. s is locked.
func (s *Store) live(ctx context.Context, skip func(Named) bool) (map[oci.Digest]bool, error) {
	idx, err := readIndex(s.indexPath())
	if err != nil {
		return nil, err // without names nothing can be told to be garbage
	}
	live := map[oci.Digest]bool{}
	for _, m := range idx.Manifests {
		if skip(Named{Ref: nameOf(m), Desc: m}) {
			continue
		}
		if err := s.mark(ctx, m, live, 0); err != nil {
			return nil, err
		}
	}
	return live, nil
}

// Reclaim is Prune for what the images gone, which have been removed from the
// index, consist of, and nothing else.
func (s *Store) Reclaim(ctx context.Context, gone []Named, grace time.Duration) (Pruned, error) {
	was := map[oci.Digest]bool{}
	for _, n := range gone {
		if err := s.mark(ctx, n.Desc, was, 0); err != nil {
			return Pruned{}, fmt.Errorf("prune image store: %w", err)
		}
	}
	return s.prune(ctx, was, grace, nil)
}

// prune is Prune, of only what is among a set where there is one.
func (s *Store) prune(ctx context.Context, among map[oci.Digest]bool, grace time.Duration, keep func(oci.Digest) bool) (Pruned, error) {
	var p Pruned
	err := s.lock(func() error {
		live, err := s.live(ctx, func(Named) bool { return false })
		if err != nil {
			return err
		}
		if p, err = s.sweep(ctx, grace, func(d oci.Digest) bool {
			return live[d] || keep != nil && keep(d) || among != nil && !among[d]
		}, os.Remove); err != nil {
			return err
		}
		return s.sweepRecords(live)
	})
	if err != nil {
		return p, fmt.Errorf("prune image store: %w", err)
	}
	sweepDrafts(s.draftDir(), s.now())
	return p, nil
}

// document is what manifests and indexes refer to.
type document struct {
	SchemaVersion int              `json:"schemaVersion"`
	Config        oci.Descriptor   `json:"config"`
	Layers        []oci.Descriptor `json:"layers"`
	Manifests     []oci.Descriptor `json:"manifests"`
}

// mark adds d and all it refers to to live. What cannot be parsed refers to
// nothing: such an image is lost already.
func (s *Store) mark(ctx context.Context, d oci.Descriptor, live map[oci.Digest]bool, depth int) error {
	if live[d.Digest] || depth > 8 {
		return nil
	}
	live[d.Digest] = true
	if !IsManifest(d.MediaType) && !IsIndex(d.MediaType) {
		return nil
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	data, err := s.Read(d.Digest)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrDamaged) {
		return nil
	}
	if err != nil {
		return err
	}
	var doc document
	if json.Unmarshal(data, &doc) != nil {
		return nil
	}
	live[doc.Config.Digest] = true
	for _, l := range doc.Layers {
		live[l.Digest] = true
	}
	for _, m := range doc.Manifests {
		if err := s.mark(ctx, m, live, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) sweep(ctx context.Context, grace time.Duration, live func(oci.Digest) bool, remove func(path string) error) (Pruned, error) {
	var p Pruned
	list, err := os.ReadDir(s.blobDir())
	if err != nil {
		return p, err
	}
	for _, e := range list {
		if err := context.Cause(ctx); err != nil {
			return p, err
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if d.Validate() != nil || live(d) {
			continue
		}
		st, err := e.Info()
		if err != nil || s.now().Sub(st.ModTime()) < grace {
			continue
		}
		if err := remove(filepath.Join(s.blobDir(), e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return p, err
		}
		p.Blobs++
		p.Bytes += st.Size()
	}
	return p, nil
}

// sweepRecords removes records that nothing has used for long.
func (s *Store) sweepRecords(live map[oci.Digest]bool) error {
	for _, kind := range []string{"compressed", "origin"} {
		dir := filepath.Join(s.dir, "records", kind)
		list, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range list {
			st, err := e.Info()
			if err != nil || s.now().Sub(st.ModTime()) < recordGrace || live[digest.NewDigestFromEncoded(digest.SHA256, e.Name())] {
				continue
			}
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Rebuild writes index.json anew from the blobs and returns its entries: every
// index, and every manifest that no index refers to. Entries that can be read are
// kept, from index.json or else from its copy; only without both are names lost.
func (s *Store) Rebuild() ([]Named, error) {
	err := s.lock(func() error {
		idx, err := s.rebuild()
		if err != nil {
			return err
		}
		return s.writeIndex(idx)
	})
	if err != nil {
		return nil, fmt.Errorf("rebuild the index of the image store: %w", err)
	}
	return s.List()
}

func (s *Store) rebuild() (*oci.Index, error) {
	idx, err := readIndex(s.indexPath())
	if errors.Is(err, ErrDamaged) {
		if idx, err = s.readCopy(); errors.Is(err, ErrDamaged) {
			idx, err = &oci.Index{}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m oci.Descriptor) bool { return !s.Has(m.Digest) })
	list, err := os.ReadDir(s.blobDir())
	if err != nil {
		return nil, err
	}
	var found []oci.Descriptor
	inner := map[oci.Digest]bool{}
	for _, m := range idx.Manifests {
		inner[m.Digest] = true
	}
	for _, e := range list {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if d.Validate() != nil {
			continue
		}
		desc, doc, ok := s.sniff(d)
		if !ok {
			continue
		}
		found = append(found, desc)
		for _, m := range doc.Manifests {
			inner[m.Digest] = true
		}
	}
	for _, d := range found {
		if !inner[d.Digest] {
			idx.Manifests = append(idx.Manifests, d)
		}
	}
	return idx, nil
}

// sniff tells whether blob d is an image's manifest or index.
func (s *Store) sniff(d oci.Digest) (oci.Descriptor, document, bool) {
	var doc struct {
		document
		MediaType string `json:"mediaType"`
	}
	no := func() (oci.Descriptor, document, bool) { return oci.Descriptor{}, document{}, false }
	r, err := s.Open(d)
	if err != nil {
		return no()
	}
	defer r.Close()
	var first [1]byte
	if _, err := io.ReadFull(r, first[:]); err != nil || !bytes.Equal(first[:], []byte("{")) {
		return no() // a layer: not read to its end
	}
	data, err := s.Read(d)
	if err != nil || json.Unmarshal(data, &doc) != nil || doc.SchemaVersion != 2 {
		return no()
	}
	desc := oci.Descriptor{MediaType: doc.MediaType, Digest: d, Size: int64(len(data))}
	switch {
	case IsManifest(doc.MediaType), IsIndex(doc.MediaType):
	case doc.MediaType != "":
		return no()
	case doc.Manifests != nil:
		desc.MediaType = specs.MediaTypeImageIndex
	case doc.Config.Digest != "":
		desc.MediaType = specs.MediaTypeImageManifest
	default:
		return no()
	}
	return desc, doc.document, true
}
