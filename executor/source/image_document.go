package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/registry"
)

// maxConfig bounds an image's configuration, in bytes. Real ones have some
// kilobytes.
const maxConfig = 16 << 20

// Image is what an image's documents say, for one platform.
type Image struct {
	Desc     oci.Descriptor // of the manifest
	Manifest oci.Manifest
	Config   oci.Image
	Raw      []byte // Config as it was
}

// documents are manifests, indexes and configurations: those in the store, and
// where client is not nil a registry's, which are put into the store.
type documents struct {
	store  *image.Store
	client *registry.Client
}

// manifest reads the manifest or index ref, by its digest.
func (d documents) manifest(ctx context.Context, ref oci.Reference) ([]byte, error) {
	data, err := d.store.Read(ref.Digest)
	if err == nil || d.client == nil {
		return data, err
	}
	data, desc, err := d.client.Manifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	_, err = d.store.Put(desc.MediaType, data)
	return data, err
}

// config reads a configuration.
func (d documents) config(ctx context.Context, ref oci.Reference, desc oci.Descriptor) ([]byte, error) {
	data, err := d.store.Read(desc.Digest)
	if err == nil || d.client == nil {
		return data, err
	}
	if desc.Size > maxConfig {
		return nil, fmt.Errorf("configuration of %s is larger than %d bytes", ref.Familiar(), maxConfig)
	}
	r, err := d.client.Blob(ctx, ref, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err = io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxConfig {
		return nil, fmt.Errorf("configuration of %s is larger than %d bytes", ref.Familiar(), maxConfig)
	}
	_, err = d.store.Put(desc.MediaType, data)
	return data, err
}

// document is a manifest or an index. Docker's forms have the same fields as
// OCI's.
type document struct {
	SchemaVersion int                `json:"schemaVersion"`
	MediaType     string             `json:"mediaType"`
	Config        *oci.Descriptor    `json:"config"`
	Layers        []oci.Descriptor   `json:"layers"`
	Manifests     []oci.Descriptor   `json:"manifests"`
	FSLayers      *[]json.RawMessage `json:"fsLayers"` // schema 1
}

// read finds the manifest of ref, a digest, for p and reads it and its
// configuration.
func (m *Images) read(ctx context.Context, docs documents, ref oci.Reference, p oci.Platform) (Image, error) {
	fail := func(err error) (Image, error) {
		return Image{}, fmt.Errorf("image %s: %w", ref.Familiar(), err)
	}
	desc := oci.Descriptor{Digest: ref.Digest}
	for depth := 0; ; depth++ {
		data, err := docs.manifest(ctx, ref.WithDigest(desc.Digest))
		if err != nil {
			return Image{}, err // names the image already
		}
		doc, err := parseDocument(data)
		if err != nil {
			return fail(err)
		}
		if doc.Config != nil {
			desc.Size, desc.MediaType = int64(len(data)), doc.MediaType
			img := Image{Desc: desc}
			if err := json.Unmarshal(data, &img.Manifest); err != nil {
				return fail(err)
			}
			if img.Raw, err = docs.config(ctx, ref, *doc.Config); err != nil {
				return fail(err)
			}
			if err := json.Unmarshal(img.Raw, &img.Config); err != nil {
				return fail(fmt.Errorf("configuration: %w", err))
			}
			return img, nil
		}
		if depth > 4 {
			return fail(errors.New("indexes within indexes"))
		}
		if desc, err = choose(doc.Manifests, p); err != nil {
			return fail(err)
		}
	}
}

// parseDocument tells the kinds apart by their fields, as a media type may be
// absent, and refuses what can be read as two kinds: CVE-2021-41190.
func parseDocument(data []byte) (document, error) {
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return d, fmt.Errorf("manifest: %w", err)
	}
	isIndex := image.IsIndex(d.MediaType) || d.MediaType == "" && d.Manifests != nil
	isManifest := image.IsManifest(d.MediaType) || d.MediaType == "" && d.Config != nil
	switch {
	case d.SchemaVersion == 1 || d.FSLayers != nil && d.Config == nil:
		return d, registry.ErrSchema1
	case isIndex && (d.Config != nil || d.Layers != nil), isManifest && d.Manifests != nil:
		return d, errors.New("both an index and a manifest")
	case isIndex && d.Manifests != nil:
		return d, nil
	case isManifest && d.Config != nil:
		if err := d.Config.Digest.Validate(); err != nil {
			return d, fmt.Errorf("manifest: configuration: %w", err)
		}
		if d.MediaType == "" {
			d.MediaType = specs.MediaTypeImageManifest
		}
		return d, nil
	}
	return d, fmt.Errorf("neither an image manifest nor an index (media type %q)", d.MediaType)
}

// choose is the manifest, or inner index, that runs best on p: p itself, else
// what its processor runs too, as arm/v6 on arm/v7.
func choose(list []oci.Descriptor, p oci.Platform) (oci.Descriptor, error) {
	var images []oci.Descriptor
	var has []string
	for _, d := range list {
		if d.Annotations["vnd.docker.reference.type"] != "" || d.Platform != nil && d.Platform.OS == "unknown" {
			continue // an attestation
		}
		if d.MediaType != "" && !image.IsIndex(d.MediaType) && !image.IsManifest(d.MediaType) {
			continue
		}
		images = append(images, d)
		if d.Platform != nil {
			has = append(has, formatPlatform(*d.Platform))
		}
	}
	if len(images) == 1 && images[0].Platform == nil {
		return images[0], nil
	}
	m := platforms.Only(withDefaults(p))
	best := -1
	for i, d := range images {
		if d.Platform == nil || !m.Match(platforms.Normalize(*d.Platform)) {
			continue
		}
		if best < 0 || m.Less(platforms.Normalize(*d.Platform), platforms.Normalize(*images[best].Platform)) {
			best = i
		}
	}
	if best >= 0 {
		return images[best], nil
	}
	if len(has) == 0 {
		return oci.Descriptor{}, fmt.Errorf("no match for platform %s in manifest, it names no platforms", formatPlatform(p))
	}
	slices.Sort(has)
	return oci.Descriptor{}, fmt.Errorf("no match for platform %s in manifest, it has: %s", formatPlatform(p), strings.Join(slices.Compact(has), ", "))
}

// matches reports whether an image for have can stand in for one for want. One
// that does not say what it is for can.
func matches(have, want oci.Platform) bool {
	return have.OS == "" || have.Architecture == "" ||
		platforms.Only(withDefaults(want)).Match(platforms.Normalize(have))
}

// withDefaults is this machine where p does not say.
func withDefaults(p oci.Platform) oci.Platform {
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		p.Architecture = runtime.GOARCH
	}
	return platforms.Normalize(p)
}

// formatPlatform is "linux/arm/v7".
func formatPlatform(p oci.Platform) string { return platforms.Format(withDefaults(p)) }
