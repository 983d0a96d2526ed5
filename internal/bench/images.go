package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/861fb494/build/internal/testbase"
)

// images are the base images, and the registry that has them.
type images struct {
	dir         string
	registryDir string
	registry    *testbase.Registry
	bodies      map[string]*body // by testbase's name of the part
	pushed      map[string]bool
}

// body is a layer but for its end: its tar's entries without the zeros at the
// end, in one gzip member. A file that nobody has seen can follow, which makes
// a new layer of the same contents at no cost.
type body struct {
	part        string
	path        string // the gzip member
	size        int64
	sum, packed hash.Hash
}

// Layers of the base images.
var baseLayers = map[string][]string{
	"busybox": {"busybox"},
	"system":  {"busybox", "system"},
	"golang":  {"busybox", "system", "toolchain"},
	"node":    {"busybox", "alpine", "node", "npm"},
}

// body makes the layer of testbase's part, or has it already.
func (im *images) body(part string) (*body, error) {
	return im.bodyOf(part, func(w io.Writer) error { return testbase.Tar(w, part) })
}

// bodyOf makes the layer that fill writes as a tar without an end.
func (im *images) bodyOf(part string, fill func(io.Writer) error) (*body, error) {
	if b, ok := im.bodies[part]; ok {
		return b, nil
	}
	b := &body{part: part, path: filepath.Join(im.dir, part+".gz"), sum: sha256.New(), packed: sha256.New()}
	f, err := os.Create(b.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buffered := bufio.NewWriterSize(io.MultiWriter(f, b.packed), 1<<20)
	zip := gzip.NewWriter(buffered)
	if err := fill(io.MultiWriter(zip, b.sum)); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	if err := buffered.Flush(); err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b.size = fi.Size()
	im.bodies[part] = b
	return b, f.Close()
}

// layer is the body with an end; with a serial it is one that nobody has seen.
func (b *body) layer(serial string) (*layer, error) {
	var end bytes.Buffer
	w := tar.NewWriter(&end)
	if serial != "" {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "serial-" + b.part, Mode: 0o644, Size: int64(len(serial))}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, serial); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	if _, err := zip.Write(end.Bytes()); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	l := &layer{body: b, end: zipped.Bytes(), tarEnd: end.Bytes()}
	var err error
	if l.diffID, err = continued(b.sum, end.Bytes()); err != nil {
		return nil, err
	}
	l.digest, err = continued(b.packed, zipped.Bytes())
	return l, err
}

// continued is the hash of what h has taken in and more.
func continued(h hash.Hash, more []byte) (v1.Hash, error) {
	c, ok := h.(hash.Cloner)
	if !ok {
		return v1.Hash{}, fmt.Errorf("%T cannot be cloned", h)
	}
	clone, err := c.Clone()
	if err != nil {
		return v1.Hash{}, err
	}
	clone.Write(more)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(clone.Sum(nil))}, nil
}

// layer is a v1.Layer.
type layer struct {
	body           *body
	tarEnd, end    []byte // the rest of the tar; the same as a gzip member
	diffID, digest v1.Hash
}

func (l *layer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *layer) Size() (int64, error)                { return l.body.size + int64(len(l.end)), nil }
func (l *layer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }

func (l *layer) Compressed() (io.ReadCloser, error) {
	f, err := os.Open(l.body.path)
	if err != nil {
		return nil, err
	}
	return readCloser{io.MultiReader(f, bytes.NewReader(l.end)), f}, nil
}

func (l *layer) Uncompressed() (io.ReadCloser, error) {
	c, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	zip, err := gzip.NewReader(c)
	if err != nil {
		c.Close()
		return nil, err
	}
	return readCloser{zip, c}, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

// push puts the base image called kind into the registry and returns its
// reference. With a serial, layers that have something in them are new.
func (im *images) push(ctx context.Context, kind, serial string) (string, error) {
	var layers []*body
	for _, part := range baseLayers[kind] {
		b, err := im.body(part)
		if err != nil {
			return "", fmt.Errorf("base image %s: %w", kind, err)
		}
		layers = append(layers, b)
	}
	return im.pushLayers(ctx, kind, serial, layers)
}

// pushMany is push for busybox and further layers, n in all, of a megabyte
// each.
func (im *images) pushMany(ctx context.Context, n int, serial string) (string, error) {
	layers := make([]*body, n)
	for i := range layers {
		part, fill := "busybox", func(w io.Writer) error { return testbase.Tar(w, "busybox") }
		if i > 0 {
			part = fmt.Sprintf("small%d", i)
			fill = func(w io.Writer) error { return smallLayer(w, i) }
		}
		var err error
		if layers[i], err = im.bodyOf(part, fill); err != nil {
			return "", fmt.Errorf("base image of %d layers: %w", n, err)
		}
	}
	return im.pushLayers(ctx, fmt.Sprintf("layers%d", n), serial, layers)
}

// smallLayer writes 50 files of 20 kB.
func smallLayer(w io.Writer, i int) error {
	source := random(uint64(i))
	tw := tar.NewWriter(w)
	data := make([]byte, 20<<10)
	for f := range 50 {
		_, _ = source.Read(data) // never fails
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("layers/%d/%d", i, f), Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		if _, err := tw.Write(data); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// pushLayers pushes an image of those layers under that name.
func (im *images) pushLayers(ctx context.Context, kind, serial string, layers []*body) (string, error) {
	tag := "latest"
	if serial != "" {
		tag = serial
	}
	ref := im.registry.Addr + "/bench/" + kind + ":" + tag
	if im.pushed[ref] {
		return ref, nil
	}
	config := &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: v1.Config{
		Env: []string{"PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOPATH=/go", "GOTOOLCHAIN=local"},
		Cmd: []string{"sh"},
	}}
	img, err := mutate.ConfigFile(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), config)
	if err != nil {
		return "", err
	}
	for _, b := range layers {
		l, err := b.layer(serial)
		if err == nil {
			img, err = mutate.AppendLayers(img, l)
		}
		if err != nil {
			return "", fmt.Errorf("base image %s: %w", kind, err)
		}
	}
	to, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return "", err
	}
	if err := remote.Write(to, img, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("push %s: %w", ref, err)
	}
	im.pushed[ref] = true
	return ref, nil
}

// empty makes the registry forget what it has.
func (im *images) empty() error {
	clear(im.pushed)
	return os.RemoveAll(filepath.Join(im.registryDir, "data", "docker", "registry", "v2"))
}

// size is how many bytes the layers of a pushed image have.
func (im *images) size(ctx context.Context, repository string) (int64, error) {
	ref, err := name.ParseReference(im.registry.Addr+"/"+repository, name.Insecure)
	if err != nil {
		return 0, err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return 0, fmt.Errorf("look at what was pushed: %w", err)
	}
	m, err := img.Manifest()
	if err != nil {
		return 0, fmt.Errorf("look at what was pushed: %w", err)
	}
	var sum int64
	for _, l := range m.Layers {
		sum += l.Size
	}
	return sum, nil
}
