package image

import (
	"cmp"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/internal/oci"
)

// Docker's media types of what OCI has its own for.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// IsManifest reports whether mediaType is that of an image manifest.
func IsManifest(mediaType string) bool {
	return mediaType == specs.MediaTypeImageManifest || mediaType == dockerManifest
}

// IsIndex reports whether mediaType is that of an image index or of Docker's
// manifest list.
func IsIndex(mediaType string) bool {
	return mediaType == specs.MediaTypeImageIndex || mediaType == dockerManifestList
}

// decode reads document d into v.
func (s *Store) decode(what string, d oci.Digest, v any) error {
	data, err := s.Read(d)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: blob %s: %w", what, d, err)
	}
	return nil
}

// Manifest reads an image manifest, OCI's or Docker's.
func (s *Store) Manifest(d oci.Digest) (oci.Manifest, error) {
	var m oci.Manifest
	if err := s.decode("manifest", d, &m); err != nil {
		return m, err
	}
	if m.SchemaVersion != 2 || m.Config.Digest == "" {
		return m, fmt.Errorf("manifest: blob %s: not an image manifest", d)
	}
	return m, nil
}

// Index reads an image index, or Docker's manifest list.
func (s *Store) Index(d oci.Digest) (oci.Index, error) {
	var idx oci.Index
	if err := s.decode("index", d, &idx); err != nil {
		return idx, err
	}
	if idx.SchemaVersion != 2 || idx.Manifests == nil {
		return idx, fmt.Errorf("index: blob %s: not an image index", d)
	}
	return idx, nil
}

// Config reads an image's configuration.
func (s *Store) Config(d oci.Digest) (oci.Image, error) {
	var img oci.Image
	err := s.decode("image configuration", d, &img)
	return img, err
}

// Manifests are the image manifests that are here of d, a manifest or an index,
// in the index's order. Each has a platform where the index gave one. What is
// no image, such as an attestation, is left out.
func (s *Store) Manifests(d oci.Descriptor) ([]oci.Descriptor, error) {
	return s.manifests(d, 0)
}

func (s *Store) manifests(d oci.Descriptor, depth int) ([]oci.Descriptor, error) {
	switch {
	case IsManifest(d.MediaType):
		return []oci.Descriptor{d}, nil
	case !IsIndex(d.MediaType):
		return nil, fmt.Errorf("blob %s: media type %q is no image", d.Digest, d.MediaType)
	case depth > 4:
		return nil, fmt.Errorf("index: blob %s: indexes within indexes", d.Digest)
	}
	idx, err := s.Index(d.Digest)
	if err != nil {
		return nil, err
	}
	var list []oci.Descriptor
	for _, m := range idx.Manifests {
		if !s.Has(m.Digest) || m.Platform != nil && m.Platform.OS == "unknown" {
			continue
		}
		if !IsManifest(m.MediaType) && !IsIndex(m.MediaType) {
			continue
		}
		sub, err := s.manifests(m, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, sub...)
	}
	return list, nil
}

// Select is the manifest of d for the platform p, and a wrapped ErrNotFound if
// it is not here. Of several variants the equal one is taken, else one for any.
// A manifest of its own is looked at in its configuration.
func (s *Store) Select(d oci.Descriptor, p oci.Platform) (oci.Descriptor, error) {
	list, err := s.Manifests(d)
	if err != nil {
		return oci.Descriptor{}, err
	}
	best, rank := oci.Descriptor{}, 0
	for _, m := range list {
		q, err := s.platform(m)
		if err != nil {
			return oci.Descriptor{}, err
		}
		if r := match(p, q); r > rank {
			m.Platform = &q
			best, rank = m, r
		}
	}
	if rank == 0 {
		return best, fmt.Errorf("image %s for %s/%s: %w in the image store", d.Digest, p.OS, p.Architecture, ErrNotFound)
	}
	return best, nil
}

// platform is what manifest m is for.
func (s *Store) platform(m oci.Descriptor) (oci.Platform, error) {
	if m.Platform != nil {
		return *m.Platform, nil
	}
	man, err := s.Manifest(m.Digest)
	if err != nil {
		return oci.Platform{}, err
	}
	img, err := s.Config(man.Config.Digest)
	return img.Platform, err
}

// match ranks an image for q on p: 0 does not run there, 2 is equal.
func match(p, q oci.Platform) int {
	if p.OS != q.OS || p.Architecture != q.Architecture {
		return 0
	}
	variant := func(p oci.Platform) string {
		if p.Architecture == "arm64" && p.Variant == "" {
			return "v8"
		}
		return p.Variant
	}
	switch pv, qv := variant(p), variant(q); {
	case pv == qv:
		return 2
	case pv == "" || qv == "":
		return 1
	}
	return 0
}

// host is the platform of this machine.
func host() oci.Platform { return oci.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// Main is the manifest that stands for d where one must: that for this
// machine, else the first that is here.
func (s *Store) Main(d oci.Descriptor) (oci.Descriptor, error) {
	if IsManifest(d.MediaType) {
		return d, nil
	}
	if m, err := s.Select(d, host()); err == nil {
		return m, nil
	}
	list, err := s.Manifests(d)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("index: blob %s: none of its manifests is here: %w", d.Digest, ErrNotFound)
	}
	if err != nil {
		return oci.Descriptor{}, err
	}
	return list[0], nil
}

// ID is the image ID of d: the digest of the configuration of Main.
func (s *Store) ID(d oci.Descriptor) (oci.Digest, error) {
	m, err := s.Main(d)
	if err != nil {
		return "", err
	}
	man, err := s.Manifest(m.Digest)
	return man.Config.Digest, err
}

// Found is an image that a user named.
type Found struct {
	ID   oci.Digest
	Desc oci.Descriptor // its manifest, or its index
	Ref  oci.Reference  // the name it was found by; zero where it was an ID or digest
}

// Lookup finds an image by what a user writes: a name, the ID, the digest of
// its manifest or index, or the first digits of the ID. Names go before IDs, as
// with Docker. Nothing found is a wrapped ErrNotFound.
func (s *Store) Lookup(name string) (Found, error) {
	if full, ok := fullDigest(name); ok {
		return s.lookupID(name, full.Encoded())
	}
	ref, refErr := oci.ParseReference(name)
	if refErr == nil {
		d, err := s.Get(ref)
		if err == nil {
			id, err := s.ID(d)
			return Found{ID: id, Desc: d, Ref: canonical(ref)}, err
		}
	}
	if prefix, ok := idPrefix(name); ok {
		return s.lookupID(name, prefix)
	}
	if refErr != nil {
		return Found{}, refErr
	}
	return Found{}, fmt.Errorf("image %s: %w here", name, ErrNotFound)
}

// lookupID finds by the first digits of ID or digest.
func (s *Store) lookupID(name, prefix string) (Found, error) {
	list, err := s.List()
	if err != nil {
		return Found{}, err
	}
	var found []Found
	var bad error // of images that cannot be read, told if nothing is found
	for _, n := range list {
		id, err := s.ID(n.Desc)
		if err != nil {
			bad = cmp.Or(bad, err)
		}
		if err == nil && strings.HasPrefix(id.Encoded(), prefix) || strings.HasPrefix(n.Desc.Digest.Encoded(), prefix) {
			found = append(found, Found{ID: id, Desc: n.Desc})
		}
	}
	if len(found) == 0 {
		if bad != nil {
			return Found{}, fmt.Errorf("image %s: %w here; some could not be read: %w", name, ErrNotFound, bad)
		}
		return Found{}, fmt.Errorf("image %s: %w here", name, ErrNotFound)
	}
	if slices.ContainsFunc(found, func(f Found) bool { return f.ID != found[0].ID }) {
		return Found{}, fmt.Errorf("image %s: several IDs begin so", name)
	}
	return found[0], nil
}

// fullDigest reads "sha256:<64 digits>" and the digits alone.
func fullDigest(s string) (oci.Digest, bool) {
	d := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimPrefix(s, "sha256:"))
	return d, d.Validate() == nil
}

// idPrefix reads the first digits of an ID, with "sha256:" or without.
func idPrefix(s string) (string, bool) {
	s = strings.TrimPrefix(s, "sha256:")
	if s == "" || len(s) > 64 || strings.Trim(s, "0123456789abcdef") != "" {
		return "", false
	}
	return s, true
}
