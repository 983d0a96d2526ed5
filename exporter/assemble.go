package exporter

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/internal/oci"
)

// bundle is all that an image consists of, ready to be written.
type bundle struct {
	root   oci.Descriptor // manifest, or index
	names  []oci.Reference
	images []imageParts
	// indexes and manifests, each after those it refers to.
	documents []document
}

// imageParts are the parts of the image for one platform.
type imageParts struct {
	config document
	layers []blob
}

// document is a configuration, a manifest or an index.
type document struct {
	desc oci.Descriptor
	data []byte
}

func newDocument(mediaType string, data []byte) document {
	return document{
		desc: oci.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		data: data,
	}
}

// Encode is the JSON of v as all documents of images have it: maps sorted, no
// white space, "<", ">" and "&" as they are. The same value gives the same
// bytes.
func Encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// Config is the configuration of an image as it is put out. Its digest is the
// image ID.
func Config(p oci.PlatformImage) (oci.Descriptor, []byte, error) {
	data := p.Raw
	if data == nil {
		var err error
		if data, err = Encode(p.Image); err != nil {
			return oci.Descriptor{}, nil, fmt.Errorf("encode image configuration: %w", err)
		}
	}
	return newDocument(specs.MediaTypeImageConfig, data).desc, data, nil
}

// assemble makes r's manifests as soon as the layers are ready.
func (e *images) assemble(ctx context.Context, r oci.Result) (*bundle, error) {
	if len(r.Images) == 0 {
		return nil, fmt.Errorf("export: there is no image")
	}
	// All of them begin before the first is waited for.
	if _, ok := e.writer.(*local); !ok {
		for _, img := range r.Images {
			for _, l := range img.Layers {
				e.layers.start(l)
			}
		}
	}
	b := &bundle{}
	for _, n := range slices.Concat(r.Names, e.a.names) {
		if !slices.Contains(b.names, n) {
			b.names = append(b.names, n)
		}
	}
	annotations := maps.Clone(r.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	maps.Copy(annotations, e.a.manifestAnnotations)
	var manifests []oci.Descriptor
	for _, img := range r.Images {
		d, err := e.manifest(ctx, b, img, annotations)
		if err != nil {
			return nil, err
		}
		manifests = append(manifests, d)
	}
	b.root = manifests[0]
	if len(manifests) == 1 && !r.Index {
		return b, nil
	}
	idx := oci.Index{MediaType: indexType(e.a.docker), Manifests: manifests, Annotations: e.a.indexAnnotations}
	idx.SchemaVersion = 2
	if e.a.docker {
		idx.Annotations = nil // the list of Docker's has none
	}
	data, err := Encode(idx)
	if err != nil {
		return nil, err
	}
	doc := newDocument(idx.MediaType, data)
	b.documents = append(b.documents, doc)
	b.root = doc.desc
	return b, nil
}

// manifest adds the image for one platform to b and returns its manifest.
func (e *images) manifest(ctx context.Context, b *bundle, img oci.PlatformImage, annotations map[string]string) (oci.Descriptor, error) {
	_, config, err := Config(img)
	if err != nil {
		return oci.Descriptor{}, err
	}
	parts := imageParts{config: newDocument(configType(e.a.docker), config)}
	for i, l := range img.Layers {
		var one blob
		if w, ok := e.writer.(*local); ok {
			one, err = w.layer(ctx, l)
		} else {
			one, err = e.layers.get(ctx, l)
		}
		if err != nil {
			return oci.Descriptor{}, err
		}
		if ids := img.Image.RootFS.DiffIDs; one.diffID != "" && (i >= len(ids) || ids[i] != one.diffID) {
			return oci.Descriptor{}, fmt.Errorf("export: layer %d is %s, the configuration has another", i+1, one.diffID)
		}
		parts.layers = append(parts.layers, one)
	}
	if n := len(img.Image.RootFS.DiffIDs); n != len(parts.layers) {
		return oci.Descriptor{}, fmt.Errorf("export: %d layers, the configuration has %d", len(parts.layers), n)
	}
	m := oci.Manifest{MediaType: manifestType(e.a.docker), Config: parts.config.desc, Layers: []oci.Descriptor{}}
	m.SchemaVersion = 2
	for _, l := range parts.layers {
		m.Layers = append(m.Layers, l.desc)
	}
	if len(img.Annotations) > 0 {
		annotations = maps.Clone(annotations)
		maps.Copy(annotations, img.Annotations)
	}
	if !e.a.docker && len(annotations) > 0 {
		m.Annotations = annotations
	}
	data, err := Encode(m)
	if err != nil {
		return oci.Descriptor{}, err
	}
	doc := newDocument(m.MediaType, data)
	platform := img.Platform
	platform.OS = cmp.Or(platform.OS, img.Image.OS)
	platform.Architecture = cmp.Or(platform.Architecture, img.Image.Architecture)
	if platform.OS != "" && platform.Architecture != "" {
		doc.desc.Platform = &platform
	}
	b.documents = append(b.documents, doc)
	b.images = append(b.images, parts)
	return doc.desc, nil
}
