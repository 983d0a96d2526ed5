package exporter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// archive writes an OCI image layout, as a tar or a directory, or the same with
// the manifest.json that makes it a Docker archive:
// https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md,
// https://github.com/moby/docker-image-spec/blob/v1.3.1/spec.md.
type archive struct {
	dest   string
	dir    bool
	docker bool
	stdout io.Writer
}

func (w *archive) write(ctx context.Context, list []*bundle) error {
	small, blobs, err := w.layout(list)
	if err == nil && w.dir {
		err = w.directory(ctx, small, blobs)
	} else if err == nil {
		err = w.tar(ctx, small, blobs)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", w.dest, err)
	}
	return nil
}

// layout is the files of the layout: those with names, and the blobs.
func (w *archive) layout(list []*bundle) (map[string][]byte, map[string]blob, error) {
	blobs := map[string]blob{}
	add := func(b blob) { blobs[blobPath(b.desc.Digest)] = b }
	for _, b := range list {
		if w.docker && len(b.images) > 1 {
			return nil, nil, errors.New("a Docker archive holds an image for one platform: use type=oci, or give one --platform")
		}
		for _, img := range b.images {
			add(blob{desc: img.config.desc, open: img.config.open})
			for _, l := range img.layers {
				if !l.foreign {
					add(l)
				}
			}
		}
		for _, d := range b.documents {
			add(blob{desc: d.desc, open: d.open})
		}
	}
	idx, err := Encode(layoutIndex(list))
	if err != nil {
		return nil, nil, err
	}
	small := map[string][]byte{
		specs.ImageLayoutFile: []byte(`{"imageLayoutVersion":"` + specs.ImageLayoutVersion + `"}`),
		specs.ImageIndexFile:  idx,
	}
	if w.docker {
		if small["manifest.json"], err = dockerManifestJSON(list); err != nil {
			return nil, nil, err
		}
	}
	return small, blobs, nil
}

func (d document) open(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(d.data)), nil
}

func blobPath(d oci.Digest) string {
	return specs.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// layoutIndex is index.json: an entry for each name. As in the layouts of
// Docker and BuildKit the full name is in io.containerd.image.name, and
// org.opencontainers.image.ref.name is the tag, but where several images would
// have the same tag it is the full name, so that it tells them apart.
func layoutIndex(list []*bundle) oci.Index {
	idx := oci.Index{MediaType: specs.MediaTypeImageIndex, Manifests: []oci.Descriptor{}}
	idx.SchemaVersion = 2
	tags := map[string]map[oci.Digest]bool{}
	for _, b := range list {
		for _, n := range b.names {
			if tags[n.Tag] == nil {
				tags[n.Tag] = map[oci.Digest]bool{}
			}
			tags[n.Tag][b.root.Digest] = true
		}
	}
	for _, b := range list {
		if len(b.names) == 0 {
			idx.Manifests = append(idx.Manifests, b.root)
		}
		for _, n := range b.names {
			d := b.root
			d.Annotations = maps.Clone(d.Annotations)
			if d.Annotations == nil {
				d.Annotations = map[string]string{}
			}
			d.Annotations[image.AnnotationContainerName] = n.String()
			d.Annotations[image.AnnotationRefName] = n.Tag
			if n.Tag == "" || len(tags[n.Tag]) > 1 {
				d.Annotations[image.AnnotationRefName] = n.String()
			}
			idx.Manifests = append(idx.Manifests, d)
		}
	}
	return idx
}

// dockerManifestJSON is the manifest.json that docker load reads.
func dockerManifestJSON(list []*bundle) ([]byte, error) {
	type entry struct {
		Config       string
		RepoTags     []string
		Layers       []string
		LayerSources map[oci.Digest]oci.Descriptor `json:",omitempty"`
	}
	var all []entry
	for _, b := range list {
		img := b.images[0]
		e := entry{Config: blobPath(img.config.desc.Digest), Layers: []string{}, LayerSources: map[oci.Digest]oci.Descriptor{}}
		for _, n := range b.names {
			if n.Tag != "" {
				n.Digest = ""
				e.RepoTags = append(e.RepoTags, n.Familiar())
			}
		}
		var config struct {
			RootFS specs.RootFS `json:"rootfs"`
		}
		if err := json.Unmarshal(img.config.data, &config); err != nil {
			return nil, fmt.Errorf("image configuration: %w", err)
		}
		for i, l := range img.layers {
			if l.foreign {
				return nil, fmt.Errorf("layer %s is not distributable; a Docker archive cannot do without it", l.desc.Digest)
			}
			e.Layers = append(e.Layers, blobPath(l.desc.Digest))
			if i < len(config.RootFS.DiffIDs) {
				e.LayerSources[config.RootFS.DiffIDs[i]] = l.desc
			}
		}
		all = append(all, e)
	}
	return Encode(all)
}

// tar writes the layout's files in a fixed order: the named ones, then the
// blobs, sorted. Nothing in it depends on the time or the user.
func (w *archive) tar(ctx context.Context, small map[string][]byte, blobs map[string]blob) error {
	f, err := createFile(w.dest, w.stdout)
	if err != nil {
		return err
	}
	return f.finish(writeTar(ctx, rawTar{f.Writer}, small, blobs))
}

func writeTar(ctx context.Context, t rawTar, small map[string][]byte, blobs map[string]blob) error {
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(small))) { // oci-layout first
		err := t.file(name, 0o644, int64(len(small[name])), func(w io.Writer) error {
			_, err := w.Write(small[name])
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, name := range []string{specs.ImageBlobsDir + "/", specs.ImageBlobsDir + "/sha256/"} {
		if err := t.dir(name); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(blobs)) {
		b := blobs[name]
		if err := t.file(name, 0o444, b.desc.Size, func(w io.Writer) error { return copyBlob(ctx, w, b) }); err != nil {
			return err
		}
	}
	return t.end()
}

// directory writes the layout's files. Blobs come before index.json, so that
// names appear once all is there; a layout that is there is added to. A
// directory that this made is removed again where something fails; what a
// killed process left is taken up by the next.
func (w *archive) directory(ctx context.Context, small map[string][]byte, blobs map[string]blob) (err error) {
	idx, made, err := oldLayout(w.dest)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && made {
			os.RemoveAll(w.dest)
		}
	}()
	if err := os.MkdirAll(filepath.Join(w.dest, specs.ImageBlobsDir, "sha256"), 0o777); err != nil {
		return err
	}
	if err := w.put(specs.ImageLayoutFile, small[specs.ImageLayoutFile]); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(blobs)) {
		p := filepath.Join(w.dest, filepath.FromSlash(name))
		if st, err := os.Stat(p); err == nil && st.Size() == blobs[name].desc.Size {
			continue
		}
		f, err := createFile(p, nil)
		if err != nil {
			return err
		}
		if err := f.finish(copyBlob(ctx, f, blobs[name])); err != nil {
			return err
		}
	}
	data := small[specs.ImageIndexFile]
	if idx != nil {
		if data, err = mergeIndex(*idx, data); err != nil {
			return err
		}
	}
	return w.put(specs.ImageIndexFile, data)
}

// put writes one of the directory's files that have names.
func (w *archive) put(name string, data []byte) error {
	f, err := createFile(filepath.Join(w.dest, name), nil)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return f.finish(err)
}

// oldLayout is the index of the layout in dir, nil if dir is empty; made says
// that dir does not exist. A directory with other things in it is an error.
func oldLayout(dir string) (idx *oci.Index, made bool, err error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, true, nil
	}
	if err != nil || len(list) == 0 {
		return nil, false, err
	}
	data, err := os.ReadFile(filepath.Join(dir, specs.ImageIndexFile))
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, specs.ImageLayoutFile)); err == nil {
			return nil, false, nil // somebody was stopped here
		}
		return nil, false, errors.New("the directory is not empty and is no OCI layout")
	}
	if err != nil {
		return nil, false, err
	}
	idx = new(oci.Index)
	if err := json.Unmarshal(data, idx); err != nil {
		return nil, false, fmt.Errorf("%s: %w", specs.ImageIndexFile, err)
	}
	return idx, false, nil
}

// mergeIndex adds the entries of the index in data to old; those take the names
// of older ones.
func mergeIndex(old oci.Index, data []byte) ([]byte, error) {
	var idx oci.Index
	if err := json.Unmarshal(data, &idx); err != nil {
		return nil, err
	}
	replaced := func(m oci.Descriptor) bool {
		return slices.ContainsFunc(idx.Manifests, func(n oci.Descriptor) bool {
			name := n.Annotations[image.AnnotationContainerName]
			return name == m.Annotations[image.AnnotationContainerName] && (name != "" || m.Digest == n.Digest) ||
				n.Annotations[image.AnnotationRefName] != "" && n.Annotations[image.AnnotationRefName] == m.Annotations[image.AnnotationRefName]
		})
	}
	idx.Manifests = append(slices.DeleteFunc(old.Manifests, replaced), idx.Manifests...)
	return Encode(idx)
}
