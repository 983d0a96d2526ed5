package remote

import (
	"fmt"

	"github.com/861fb494/build/internal/oci"
)

// maxInline bounds an inline index, in bytes: registries take manifests of
// 4 MiB.
const maxInline = 2 << 20

// Inline is the index of a cache that is an image with the given layers, for
// the manifest's annotation InlineAnnotation. Records of which a layer is not
// the image's are left out; where there are no others it is empty. Which blobs
// the layers are compressed to is not known yet: the index has them in the
// manifest's order.
func Inline(layers []oci.Layer, records []Record) (string, error) {
	e := &export{at: map[layerKey]int{}}
	for _, l := range layers {
		if e.number(l) != len(e.layers)-1 {
			return "", nil // the same layer twice: not worth an exception
		}
	}
	n := len(e.layers)
	for _, r := range records {
		if e.has(r) {
			e.add(r)
		}
	}
	if len(e.index.Records) == 0 || len(e.layers) != n {
		return "", nil
	}
	e.index.Version = version
	data, err := encode(e.index)
	if err == nil && len(data) > maxInline {
		err = fmt.Errorf("%d bytes are too many for an annotation: use type=registry", len(data))
	}
	return string(data), err
}

// has reports whether all of a record's layers are known.
func (e *export) has(r Record) bool {
	for _, l := range r.Layers {
		if _, ok := e.at[keyOf(l)]; !ok {
			return false
		}
	}
	return true
}

// parseInline reads the index of a manifest's annotation, and gives its layers
// the blobs that the manifest lists.
func parseInline(text string, blobs []oci.Descriptor) (*index, error) {
	return decodeIndex([]byte(text), func(x *index) error {
		if len(x.Layers) != len(blobs) {
			return fmt.Errorf("%d layers, the manifest has %d", len(x.Layers), len(blobs))
		}
		for i := range x.Layers {
			x.Layers[i].Blob, x.Layers[i].Entries = blobs[i].Digest, ""
		}
		x.Mounts = nil // an image has no blobs for them
		return nil
	})
}
