package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
)

// Stored is an image of the image store that is to be put out.
type Stored struct {
	Desc  oci.Descriptor // its manifest, or its index
	Names []oci.Reference
}

// Find returns the layer of the cache that is the top of a chain, by its ID
// (oci.ChainID), with Tar set.
type Find func(chain oci.Digest) (oci.Layer, bool)

// Save puts images of the store out: all of them into one archive, or each
// under its names. An image whose blobs are all here, or in a registry, goes
// out byte for byte; else its layers are compressed and it gets another
// manifest, with the same configuration and so the same ID. It returns what
// was written of the last image. find may be nil.
func Save(ctx context.Context, list []Stored, find Find, out Output, o Options) (oci.Descriptor, error) {
	if o.Store == nil {
		return oci.Descriptor{}, errors.New("export: no image store")
	}
	if len(list) == 0 {
		return oci.Descriptor{}, errors.New("export: there is no image")
	}
	if len(list) == 1 {
		o.Names = list[0].Names
	}
	e, err := New(out, o)
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer e.Close()
	to, ok := e.(*images)
	if !ok {
		return oci.Descriptor{}, fmt.Errorf("output type=%s is not for images of the store", out.Type)
	}
	var sources []source
	for _, s := range list {
		sources = append(sources, func(ctx context.Context) (*bundle, error) {
			b, err := to.stored(ctx, s, find)
			if err != nil && len(s.Names) > 0 {
				err = fmt.Errorf("image %s: %w", s.Names[0].Familiar(), err)
			}
			return b, err
		})
	}
	return to.export(ctx, sources)
}

// stored is the bundle of an image of the store.
func (e *images) stored(ctx context.Context, s Stored, find Find) (*bundle, error) {
	store, desc := e.o.Store, s.Desc
	if a, ok := e.writer.(*archive); ok && a.docker {
		var err error
		if desc, err = store.Main(desc); err != nil {
			return nil, err
		}
	}
	manifests, err := store.Manifests(desc)
	if err != nil {
		return nil, err
	}
	switch {
	case len(manifests) == 0:
		return nil, fmt.Errorf("none of its manifests is here; pull it for the platform you need")
	case len(manifests) == 1 && image.IsIndex(desc.MediaType) && !e.complete(desc):
		desc = manifests[0] // pulled for one platform
	}
	if e.verbatim(desc) {
		b := &bundle{root: desc, names: s.Names}
		return b, e.collect(b, desc, 0)
	}
	r := oci.Result{Names: s.Names}
	for _, m := range manifests {
		img, annotations, err := e.platformImage(m, find)
		if err != nil {
			return nil, err
		}
		r.Images = append(r.Images, img)
		r.Annotations = annotations
	}
	return e.assemble(ctx, r)
}

// complete reports whether all that d refers to is in the store.
func (e *images) complete(d oci.Descriptor) bool {
	idx, err := e.o.Store.Index(d.Digest)
	if err != nil {
		return false
	}
	for _, m := range idx.Manifests {
		if !e.o.Store.Has(m.Digest) || image.IsIndex(m.MediaType) && !e.complete(m) {
			return false
		}
	}
	return true
}

// verbatim reports whether d can go out, and should, as it is.
func (e *images) verbatim(d oci.Descriptor) bool {
	if e.a.force || e.a.docker || len(e.a.manifestAnnotations) > 0 || len(e.a.indexAnnotations) > 0 {
		return false
	}
	if image.IsIndex(d.MediaType) {
		idx, err := e.o.Store.Index(d.Digest)
		if err != nil || !e.complete(d) {
			return false
		}
		for _, m := range idx.Manifests {
			if !e.verbatim(m) {
				return false
			}
		}
		return true
	}
	m, err := e.o.Store.Manifest(d.Digest)
	if err != nil {
		return false
	}
	for _, l := range m.Layers {
		if !e.kept(l) {
			return false
		}
	}
	return true
}

// kept reports whether layer blob d goes out as it is: what a registry gave
// does; a tar that was built here, or loaded, is compressed.
func (e *images) kept(d oci.Descriptor) bool {
	if len(d.URLs) > 0 || len(e.o.Store.Origins(d.Digest)) > 0 {
		return true
	}
	plain := layerType(d.MediaType, false) == compress.Method{Type: compress.Uncompressed}.MediaType()
	return e.o.Store.Has(d.Digest) && (!plain || e.a.method.Type == compress.Uncompressed)
}

// collect adds d and all it refers to to b, as they are.
func (e *images) collect(b *bundle, d oci.Descriptor, depth int) error {
	data, err := e.o.Store.Read(d.Digest)
	if err != nil {
		return err
	}
	doc := document{desc: d, data: data}
	doc.desc.Annotations, doc.desc.Platform = nil, nil
	if image.IsIndex(d.MediaType) {
		idx, err := e.o.Store.Index(d.Digest)
		if err != nil || depth > 4 {
			return errors.Join(err, errors.New("indexes within indexes"))
		}
		for _, m := range idx.Manifests {
			if err := e.collect(b, m, depth+1); err != nil {
				return err
			}
		}
		b.documents = append(b.documents, doc)
		return nil
	}
	m, err := e.o.Store.Manifest(d.Digest)
	if err != nil {
		return err
	}
	config, err := e.o.Store.Read(m.Config.Digest)
	if err != nil {
		return err
	}
	parts := imageParts{config: document{desc: m.Config, data: config}}
	for _, l := range m.Layers {
		k := maker{p: e.layers, l: oci.Layer{Blob: &l}}
		one, ok := k.pulled()
		if !ok {
			return fmt.Errorf("layer %s is not here; pull the image again", l.Digest)
		}
		one.desc = l
		parts.layers = append(parts.layers, one)
	}
	b.images = append(b.images, parts)
	b.documents = append(b.documents, doc)
	return nil
}

// platformImage is what manifest d describes, in the terms of a build.
func (e *images) platformImage(d oci.Descriptor, find Find) (oci.PlatformImage, map[string]string, error) {
	var img oci.PlatformImage
	m, err := e.o.Store.Manifest(d.Digest)
	if err != nil {
		return img, nil, err
	}
	if img.Raw, err = e.o.Store.Read(m.Config.Digest); err != nil {
		return img, nil, err
	}
	if err := json.Unmarshal(img.Raw, &img.Image); err != nil {
		return img, nil, fmt.Errorf("image configuration %s: %w", m.Config.Digest, err)
	}
	img.Platform = img.Image.Platform
	if d.Platform != nil {
		img.Platform = *d.Platform
	}
	ids := img.Image.RootFS.DiffIDs
	if len(ids) != len(m.Layers) {
		return img, nil, fmt.Errorf("manifest %s has %d layers, its configuration %d", d.Digest, len(m.Layers), len(ids))
	}
	var chain oci.Digest
	for i, l := range m.Layers {
		chain = oci.ChainID(chain, ids[i])
		one, err := e.layer(l, ids[i], chain, find)
		if err != nil {
			return img, nil, err
		}
		img.Layers = append(img.Layers, one)
	}
	return img, m.Annotations, nil
}

// layer is the layer that a stored manifest lists as d, the top of chain.
func (e *images) layer(d oci.Descriptor, diffID, chain oci.Digest, find Find) (oci.Layer, error) {
	s := e.o.Store
	l, found := oci.Layer{}, false
	if find != nil {
		l, found = find(chain)
	}
	if !found {
		l = oci.Layer{ID: diffID.String()}
	}
	l.DiffID, l.Blob, l.Origin = diffID, nil, ""
	if e.kept(d) {
		l.Blob = &d
	} else {
		l.Compressed = nil
	}
	if d.Digest == diffID {
		l.TarSize = d.Size
	}
	if l.Tar == nil && s.Has(d.Digest) {
		l.Tar = func(context.Context) (io.ReadCloser, error) {
			r, err := s.Open(d.Digest)
			if err != nil {
				return nil, err
			}
			return image.Decompress(r)
		}
	}
	if l.Blob == nil && l.Tar == nil {
		return l, fmt.Errorf("layer %s is not here: it was removed from the cache; build the image again", diffID)
	}
	return l, nil
}
