// Package archive reads images out of OCI layouts and Docker archives into an
// image store.
//
// Formats: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
// and https://github.com/moby/docker-image-spec/blob/v1.3.1/spec.md. Nothing is
// believed: every blob is read against its digest, every layer against its diff
// ID, and no file is made under a name from the archive.
package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// maxDocument bounds the JSON files of an archive, in bytes.
const maxDocument = 16 << 20

// Options are those of Load. The zero value works.
type Options struct {
	Stdin io.Reader // what the path "-" means; nil: os.Stdin
	Temp  string    // directory for a temporary copy of what cannot be read twice; empty: os.TempDir
}

// Load reads the images in path into s: a directory or a tar, which may be
// compressed, or "-" for a tar on standard input. They get their names once all
// of them are whole; an image without a name is entered without one.
func Load(ctx context.Context, s *image.Store, path string, o Options) ([]image.Named, error) {
	if o.Stdin == nil {
		o.Stdin = os.Stdin
	}
	f, err := open(ctx, path, o)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	defer f.Close()
	l := &loader{ctx: ctx, store: s, files: f}
	list, err := l.load()
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	for _, n := range list {
		if n.HasName() {
			err = s.Set(n.Ref, n.Desc)
		} else {
			err = s.Add(n.Desc)
		}
		if err != nil {
			return nil, fmt.Errorf("load %s: %w", path, err)
		}
	}
	return list, nil
}

// loader reads one archive.
type loader struct {
	ctx   context.Context
	store *image.Store
	files files
	names map[oci.Digest][]string // RepoTags by configuration, of manifest.json
}

// errNoFile is that the archive lacks a file.
var errNoFile = errors.New("not in the archive")

func (l *loader) load() ([]image.Named, error) {
	var idx oci.Index
	isLayout := true
	if err := l.json(specs.ImageIndexFile, &idx); errors.Is(err, errNoFile) {
		isLayout = false
	} else if err != nil {
		return nil, err
	}
	var docker []dockerEntry
	if err := l.json("manifest.json", &docker); err != nil && !errors.Is(err, errNoFile) {
		return nil, err
	}
	switch {
	case isLayout && len(idx.Manifests) > 0:
		return l.layout(idx, docker)
	case len(docker) > 0:
		return l.docker(docker)
	case isLayout:
		return nil, errors.New("the layout holds no image")
	}
	return nil, errors.New("neither an OCI layout (index.json) nor a Docker archive (manifest.json)")
}

// json reads a JSON file of the archive.
func (l *loader) json(name string, v any) error {
	data, err := l.read(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (l *loader) read(name string) ([]byte, error) {
	r, err := l.files.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err == nil && len(data) > maxDocument {
		err = fmt.Errorf("larger than %d bytes", maxDocument)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}

// layout loads the images of index.json.
func (l *loader) layout(idx oci.Index, docker []dockerEntry) ([]image.Named, error) {
	l.names = map[oci.Digest][]string{}
	for _, e := range docker {
		if d, ok := digestOf(e.Config); ok {
			l.names[d] = e.RepoTags
		}
	}
	var list []image.Named
	for _, m := range idx.Manifests {
		if !image.IsManifest(m.MediaType) && !image.IsIndex(m.MediaType) {
			return nil, fmt.Errorf("%s: media type %q is no image", m.Digest, m.MediaType)
		}
		ids, err := l.tree(m, 0)
		if err != nil {
			return nil, err
		}
		refs, err := l.namesOf(m, ids)
		if err != nil {
			return nil, err
		}
		m.Annotations = nil
		for _, ref := range refs {
			list = append(list, image.Named{Ref: ref, Desc: m})
		}
		if len(refs) == 0 {
			list = append(list, image.Named{Desc: m})
		}
	}
	return list, nil
}

// namesOf are the names of index entry m, whose configurations are ids. The
// annotation org.opencontainers.image.ref.name counts as one only where it is
// more than a tag.
func (l *loader) namesOf(m oci.Descriptor, ids []oci.Digest) ([]oci.Reference, error) {
	names := []string{m.Annotations[image.AnnotationContainerName]}
	if ref := m.Annotations[image.AnnotationRefName]; names[0] == "" && strings.ContainsAny(ref, "/:@") {
		names[0] = ref
	}
	if names[0] == "" {
		names = nil
		for _, id := range ids {
			names = append(names, l.names[id]...)
		}
	}
	return parseNames(names)
}

func parseNames(names []string) ([]oci.Reference, error) {
	var list []oci.Reference
	for _, n := range names {
		ref, err := oci.ParseReference(n)
		if err != nil {
			return nil, err
		}
		list = append(list, ref)
	}
	return list, nil
}

// tree loads a manifest, or an index with those of its manifests that are
// there, and returns the configurations' digests.
func (l *loader) tree(d oci.Descriptor, depth int) ([]oci.Digest, error) {
	if depth > 4 {
		return nil, fmt.Errorf("index %s: indexes within indexes", d.Digest)
	}
	data, err := l.document(d)
	if err != nil {
		return nil, err
	}
	if image.IsManifest(d.MediaType) {
		var m oci.Manifest
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		if err := l.manifest(d, m); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		return []oci.Digest{m.Config.Digest}, l.put(d, data)
	}
	var idx oci.Index
	if err := json.Unmarshal(data, &idx); err != nil {
		return nil, fmt.Errorf("index %s: %w", d.Digest, err)
	}
	var ids []oci.Digest
	for _, m := range idx.Manifests {
		if !l.has(m.Digest) || !image.IsManifest(m.MediaType) && !image.IsIndex(m.MediaType) {
			continue // an index may be of more platforms than were saved
		}
		sub, err := l.tree(m, depth+1)
		if err != nil {
			return nil, err
		}
		ids = append(ids, sub...)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("index %s: none of its manifests is there", d.Digest)
	}
	return ids, l.put(d, data)
}

// manifest loads what m refers to.
func (l *loader) manifest(d oci.Descriptor, m oci.Manifest) error {
	config, err := l.document(m.Config)
	if err != nil {
		return err
	}
	if err := l.put(m.Config, config); err != nil {
		return err
	}
	var img oci.Image
	diffIDs := []oci.Digest(nil)
	if d.Platform == nil || d.Platform.OS != "unknown" { // an attestation's layers are documents
		if err := json.Unmarshal(config, &img); err != nil {
			return fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
		}
		if diffIDs = img.RootFS.DiffIDs; len(diffIDs) != len(m.Layers) {
			return fmt.Errorf("%d layers, but its configuration has %d", len(m.Layers), len(diffIDs))
		}
	}
	for i, layer := range m.Layers {
		var diffID oci.Digest
		if diffIDs != nil {
			diffID = diffIDs[i]
		}
		if err := l.layer(layer, diffID); err != nil {
			return fmt.Errorf("layer %s: %w", layer.Digest, err)
		}
	}
	return nil
}

// blobName is where blob d is in a layout; empty if d is none.
func blobName(d oci.Digest) string {
	if d.Validate() != nil {
		return ""
	}
	return specs.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

func (l *loader) has(d oci.Digest) bool {
	name := blobName(d)
	if name == "" {
		return false
	}
	r, err := l.files.Open(name)
	if err != nil {
		return false
	}
	r.Close()
	return true
}

// document reads blob d of a layout, a manifest, index or configuration.
func (l *loader) document(d oci.Descriptor) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w", string(d.Digest), err)
	}
	data, err := l.read(blobName(d.Digest))
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(data); got != d.Digest {
		return nil, fmt.Errorf("%s: its digest is %s", blobName(d.Digest), got)
	}
	return data, nil
}

func (l *loader) put(d oci.Descriptor, data []byte) error {
	got, err := l.store.Put(d.MediaType, data)
	if err == nil && got.Digest != d.Digest {
		err = fmt.Errorf("blob %s: only sha256 is stored", d.Digest)
	}
	return err
}

// layer loads layer blob d, and demands that its tar has diffID unless that is
// empty. A layer that is here already, or has URLs to be fetched from, need not
// be in the archive.
func (l *loader) layer(d oci.Descriptor, diffID oci.Digest) error {
	name := blobName(d.Digest)
	if name == "" {
		return fmt.Errorf("digest %q is none", string(d.Digest))
	}
	r, err := l.files.Open(name)
	if errors.Is(err, errNoFile) && (l.store.Renew(d) || len(d.URLs) > 0) {
		return nil
	}
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = l.ingest(r, d, diffID)
	return err
}

// ingest stores the layer that r yields. want is what it must be; of an empty
// digest anything is taken. Its tar must have diffID unless that is empty.
func (l *loader) ingest(r io.Reader, want oci.Descriptor, diffID oci.Digest) (oci.Descriptor, error) {
	w, err := l.store.Ingest(l.ctx)
	if err != nil {
		return want, err
	}
	defer w.Close()
	tee := io.TeeReader(r, w)
	if diffID != "" {
		plain, err := image.Decompress(io.NopCloser(tee))
		if err != nil {
			return want, err
		}
		defer plain.Close()
		v := diffID.Algorithm()
		if !v.Available() {
			return want, fmt.Errorf("diff ID %q is none", string(diffID))
		}
		got, err := v.FromReader(plain)
		if err != nil {
			return want, err
		}
		if got != diffID {
			return want, fmt.Errorf("its tar has the diff ID %s instead of %s", got, diffID)
		}
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return want, err
	}
	if want.Digest == "" {
		want.Digest, want.Size = w.Digest(), w.Size()
	}
	return want, w.Commit(want)
}

// layerType is the media type of a layer that begins with head.
func layerType(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return specs.MediaTypeImageLayerGzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return specs.MediaTypeImageLayerZstd
	}
	return specs.MediaTypeImageLayer
}
