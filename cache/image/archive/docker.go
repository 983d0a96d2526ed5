package archive

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// dockerEntry is one image in manifest.json.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// digestOf reads the digest in the name of a configuration: "<hex>.json" or
// "blobs/sha256/<hex>".
func digestOf(name string) (oci.Digest, bool) {
	d := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimSuffix(path.Base(name), ".json"))
	return d, d.Validate() == nil
}

// docker loads the images of manifest.json. They get manifests of OCI's, which
// list the layers as they are in the archive.
func (l *loader) docker(entries []dockerEntry) ([]image.Named, error) {
	var list []image.Named
	for _, e := range entries {
		d, err := l.dockerImage(e)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", strings.Join(append(e.RepoTags, e.Config), " "), err)
		}
		refs, err := parseNames(e.RepoTags)
		if err != nil {
			return nil, err
		}
		for _, ref := range refs {
			list = append(list, image.Named{Ref: ref, Desc: d})
		}
		if len(refs) == 0 {
			list = append(list, image.Named{Desc: d})
		}
	}
	return list, nil
}

func (l *loader) dockerImage(e dockerEntry) (oci.Descriptor, error) {
	none := oci.Descriptor{}
	config, err := l.read(e.Config)
	if err != nil {
		return none, err
	}
	var img oci.Image
	if err := json.Unmarshal(config, &img); err != nil {
		return none, fmt.Errorf("%s: %w", e.Config, err)
	}
	if want, ok := digestOf(e.Config); ok && digest.FromBytes(config) != want {
		return none, fmt.Errorf("%s: its digest is %s", e.Config, digest.FromBytes(config))
	}
	if n := len(img.RootFS.DiffIDs); n != len(e.Layers) {
		return none, fmt.Errorf("%d layers, but its configuration has %d", len(e.Layers), n)
	}
	m := oci.Manifest{MediaType: specs.MediaTypeImageManifest, Layers: []oci.Descriptor{}}
	m.SchemaVersion = 2
	for i, name := range e.Layers {
		d, err := l.dockerLayer(name, img.RootFS.DiffIDs[i])
		if err != nil {
			return none, fmt.Errorf("layer %s: %w", name, err)
		}
		m.Layers = append(m.Layers, d)
	}
	if m.Config, err = l.store.Put(specs.MediaTypeImageConfig, config); err != nil {
		return none, err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return none, err
	}
	return l.store.Put(m.MediaType, data)
}

func (l *loader) dockerLayer(name string, diffID oci.Digest) (oci.Descriptor, error) {
	if diffID == "" {
		return oci.Descriptor{}, errors.New("its diff ID is empty")
	}
	r, err := l.files.Open(name)
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer r.Close()
	b := bufio.NewReader(r)
	head, _ := b.Peek(4) // a shorter layer is not compressed
	return l.ingest(b, oci.Descriptor{MediaType: layerType(head)}, diffID)
}
