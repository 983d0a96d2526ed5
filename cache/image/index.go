package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/internal/oci"
)

// Named is one entry of the index.
type Named struct {
	Ref  oci.Reference  // the zero Reference of an image without a name
	Desc oci.Descriptor // its manifest, or its index
}

// HasName reports whether the entry has a name.
func (n Named) HasName() bool { return n.Ref != oci.Reference{} }

// Set gives the image d the name ref, and takes the name from whatever had it.
// A name with a digest has no tag here, as with Docker. The manifest or index
// must be in the store already. An entry of the same image without a name goes.
func (s *Store) Set(ref oci.Reference, d oci.Descriptor) error {
	if ref.Path == "" {
		return errors.New("name image: empty name")
	}
	ref = canonical(ref)
	d.Annotations = maps.Clone(d.Annotations)
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	d.Annotations[AnnotationRefName] = ref.String()
	d.Annotations[AnnotationContainerName] = ref.String()
	return s.add(d, ref)
}

// Add enters the image d without a name, unless it is in the index already.
func (s *Store) Add(d oci.Descriptor) error {
	d.Annotations = maps.Clone(d.Annotations)
	delete(d.Annotations, AnnotationRefName)
	delete(d.Annotations, AnnotationContainerName)
	return s.add(d, oci.Reference{})
}

func (s *Store) add(d oci.Descriptor, ref oci.Reference) error {
	named := ref != oci.Reference{}
	err := s.update(func(idx *oci.Index) (bool, error) {
		if !s.Has(d.Digest) {
			return false, fmt.Errorf("blob %s: %w in the image store", d.Digest, ErrNotFound)
		}
		same := func(m oci.Descriptor) bool {
			return named && nameOf(m) == ref || m.Digest == d.Digest && !named
		}
		if i := slices.IndexFunc(idx.Manifests, same); i >= 0 && idx.Manifests[i].Digest == d.Digest {
			return false, nil
		}
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m oci.Descriptor) bool {
			return same(m) || m.Digest == d.Digest && nameOf(m) == oci.Reference{}
		})
		idx.Manifests = append(idx.Manifests, d)
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("name image %s: %w", ref, err)
	}
	return nil
}

// Get is the manifest or index that has the name ref, or a wrapped ErrNotFound.
// A name with a digest is found by its repository and digest whatever its tag.
func (s *Store) Get(ref oci.Reference) (oci.Descriptor, error) {
	idx, err := s.index()
	if err != nil {
		return oci.Descriptor{}, err
	}
	ref = canonical(ref)
	for _, m := range idx.Manifests {
		if nameOf(m) == ref {
			return bare(m), nil
		}
	}
	if ref.Digest != "" {
		for _, m := range idx.Manifests {
			if m.Digest == ref.Digest && nameOf(m).Repository() == ref.Repository() {
				return bare(m), nil
			}
		}
	}
	return oci.Descriptor{}, fmt.Errorf("image %s: %w in the image store", ref.Familiar(), ErrNotFound)
}

// Delete takes the name ref away; a wrapped ErrNotFound if nothing has it. The
// blobs stay until Prune.
func (s *Store) Delete(ref oci.Reference) error {
	ref = canonical(ref)
	gone, err := s.Remove(func(n Named) bool { return n.Ref == ref })
	if err == nil && len(gone) == 0 {
		err = fmt.Errorf("image %s: %w in the image store", ref.Familiar(), ErrNotFound)
	}
	return err
}

// Remove takes the entries that match out of the index, at once, and returns
// them.
func (s *Store) Remove(match func(Named) bool) ([]Named, error) {
	var gone []Named
	err := s.update(func(idx *oci.Index) (bool, error) {
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m oci.Descriptor) bool {
			n := Named{Ref: nameOf(m), Desc: bare(m)}
			if !match(n) {
				return false
			}
			gone = append(gone, n)
			return true
		})
		return len(gone) > 0, nil
	})
	if err != nil {
		return nil, fmt.Errorf("remove image: %w", err)
	}
	return gone, nil
}

// List is all entries, the last named last.
func (s *Store) List() ([]Named, error) {
	idx, err := s.index()
	if err != nil {
		return nil, err
	}
	list := make([]Named, len(idx.Manifests))
	for i, m := range idx.Manifests {
		list[i] = Named{Ref: nameOf(m), Desc: bare(m)}
	}
	return list, nil
}

// canonical drops the tag of a name that has a digest.
func canonical(ref oci.Reference) oci.Reference {
	if ref.Digest != "" {
		ref.Tag = ""
	}
	return ref
}

// nameOf is the name in a descriptor's annotations. Other tools may have
// written the entry, so a short name is read as a user's would be.
func nameOf(d oci.Descriptor) oci.Reference {
	for _, a := range []string{AnnotationContainerName, AnnotationRefName} {
		if v := d.Annotations[a]; v != "" {
			if ref, err := oci.ParseReference(v); err == nil {
				return canonical(ref)
			}
		}
	}
	return oci.Reference{}
}

// bare is d without the annotations that name it.
func bare(d oci.Descriptor) oci.Descriptor {
	d.Annotations = maps.Clone(d.Annotations)
	delete(d.Annotations, AnnotationRefName)
	delete(d.Annotations, AnnotationContainerName)
	if len(d.Annotations) == 0 {
		d.Annotations = nil
	}
	return d
}

// index reads index.json. Where it is lost or damaged it is recovered first.
func (s *Store) index() (*oci.Index, error) {
	idx, err := readIndex(s.indexPath())
	if err == nil {
		return idx, nil
	}
	if !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	if _, err = s.Rebuild(); err != nil {
		return nil, err
	}
	return readIndex(s.indexPath())
}

// update changes index.json by f, under the lock; f says whether it changed
// anything.
func (s *Store) update(f func(*oci.Index) (bool, error)) error {
	return s.lock(func() error {
		idx, err := readIndex(s.indexPath())
		if errors.Is(err, ErrDamaged) {
			idx, err = s.rebuild()
		}
		if err != nil {
			return err
		}
		changed, err := f(idx)
		if err != nil || !changed {
			return err
		}
		return s.writeIndex(idx)
	})
}

// readIndex gives a wrapped ErrDamaged where the file is absent or is no index.
func readIndex(path string) (*oci.Index, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("image store: %s is missing: %w", path, ErrDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	var idx oci.Index
	if err := json.Unmarshal(data, &idx); err != nil {
		return nil, fmt.Errorf("image store: %s: %w: %w", path, ErrDamaged, err)
	}
	if idx.SchemaVersion != 2 {
		return nil, fmt.Errorf("image store: %s: %w: schema version %d", path, ErrDamaged, idx.SchemaVersion)
	}
	return &idx, nil
}

// copyPath is the record that has the index, too.
func (s *Store) copyPath() string { return filepath.Join(s.dir, "records", "index") }

// readCopy is the index as it was last written, if that is still known.
func (s *Store) readCopy() (*oci.Index, error) {
	data, err := readSealed(s.copyPath())
	if errors.Is(err, os.ErrNotExist) {
		err = ErrDamaged
	}
	var idx oci.Index
	if err == nil && json.Unmarshal(data, &idx) != nil {
		err = ErrDamaged
	}
	return &idx, err
}

// writeIndex replaces index.json; the caller holds the lock.
func (s *Store) writeIndex(idx *oci.Index) error {
	idx.SchemaVersion = 2
	idx.MediaType = specs.MediaTypeImageIndex
	if idx.Manifests == nil {
		idx.Manifests = []oci.Descriptor{} // the specification demands the array
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(idx); err != nil {
		return err
	}
	// First, so that it is never older than the index. One that cannot be
	// written must not stay, since it would bring names back.
	if err := s.writeRecord(s.copyPath(), []byte(b.String())); err != nil {
		if rerr := os.Remove(s.copyPath()); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			return errors.Join(err, rerr)
		}
	}
	return s.writeFile(s.indexPath(), []byte(b.String()))
}
