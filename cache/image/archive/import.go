package archive

import (
	"context"
	"errors"
	"fmt"
	"os"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// Import reads one image of the OCI layout in directory dir into s, without a
// name. It is the one with the digest, or else with the tag: the annotation
// org.opencontainers.image.ref.name. Without either it is "latest", or the only
// one there is.
func Import(ctx context.Context, s *image.Store, dir, tag string, digest oci.Digest) (oci.Descriptor, error) {
	fail := func(err error) (oci.Descriptor, error) {
		return oci.Descriptor{}, fmt.Errorf("oci layout %s: %w", dir, err)
	}
	if st, err := os.Stat(dir); err != nil {
		return fail(err)
	} else if !st.IsDir() {
		return fail(errors.New("not a directory"))
	}
	f, err := open(ctx, dir, Options{})
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	l := &loader{ctx: ctx, store: s, files: f}
	var idx oci.Index
	if err := l.json(specs.ImageIndexFile, &idx); err != nil {
		return fail(err)
	}
	m, err := entry(idx, tag, digest)
	if err != nil {
		return fail(err)
	}
	if !image.IsManifest(m.MediaType) && !image.IsIndex(m.MediaType) {
		return fail(fmt.Errorf("%s: media type %q is no image", m.Digest, m.MediaType))
	}
	if _, err := l.tree(m, 0); err != nil {
		return fail(err)
	}
	m.Annotations = nil
	return m, nil
}

func entry(idx oci.Index, tag string, digest oci.Digest) (oci.Descriptor, error) {
	want := tag
	if want == "" {
		want = "latest"
	}
	for _, m := range idx.Manifests {
		if digest != "" && m.Digest == digest || digest == "" && m.Annotations[image.AnnotationRefName] == want {
			return m, nil
		}
	}
	if tag == "" && digest == "" && len(idx.Manifests) == 1 {
		return idx.Manifests[0], nil
	}
	if digest != "" {
		return oci.Descriptor{}, fmt.Errorf("no image %s in it", digest)
	}
	return oci.Descriptor{}, fmt.Errorf("no image with the tag %q in it", want)
}
