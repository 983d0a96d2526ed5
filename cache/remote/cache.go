package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

// Record is a step's result, as exported or imported.
type Record struct {
	Keys    []oci.Digest // the step's own digest, its key by content
	Layers  []oci.Layer  // lowest first
	Created time.Time
	Expires time.Time // when the step is to be run anew; zero: never
	Parts   []cache.Part
}

// Cache is a cache that was opened to import from it. Nothing but its manifest
// and its index has been read. It is safe for concurrent use.
type Cache struct {
	place   Place
	now     func() time.Time
	parts   []part
	records map[oci.Digest]found
	entries map[oci.Digest]*entriesOf // by diff ID
	mounts  map[string]StoredMount
}

// part is one manifest with its index: an image for several platforms has
// several.
type part struct {
	index  *index
	blobs  map[oci.Digest]oci.Descriptor
	origin string
}

type found struct{ part, record int }

// entriesOf is a list of entries that is read when somebody asks.
type entriesOf struct {
	desc    oci.Descriptor
	content oci.Digest // what it must come to; empty: of a base image's layer

	mu      sync.Mutex
	changes []tree.Change
	err     error
	done    bool
}

// maxManifests is how many manifests of an image for several platforms are
// looked at.
const maxManifests = 32

// Open reads manifest and index of the cache at p, two requests as a rule, and
// checks them: the version; the number of layers and records; that each layer a
// record names is there; that each blob has a digest and a size. A place
// without a cache is an ErrNoCache, or an fs.ErrNotExist.
func Open(ctx context.Context, p Place) (*Cache, error) {
	c := &Cache{place: p, now: time.Now, records: map[oci.Digest]found{}, entries: map[oci.Digest]*entriesOf{}, mounts: map[string]StoredMount{}}
	if err := c.open(ctx, "", true); err != nil {
		return nil, fmt.Errorf("import cache from %s: %w", p, err)
	}
	return c, nil
}

func (c *Cache) open(ctx context.Context, d oci.Digest, root bool) error {
	data, err := c.place.Manifest(ctx, d)
	if err != nil {
		return err
	}
	doc, err := parseDocument(data)
	if err != nil {
		return err
	}
	if d == "" {
		d = digest.FromBytes(data)
	}
	var x *index
	inline, isInline := doc.Annotations[InlineAnnotation]
	switch {
	case len(doc.Manifests) > 0 && root:
		return c.openAll(ctx, doc.Manifests)
	case isInline:
		x, err = parseInline(inline, doc.Layers)
	case doc.Config != nil && doc.Config.MediaType == indexType:
		if data, err = readBlob(ctx, c.place, *doc.Config, maxIndex); err != nil {
			return err
		}
		x, err = parseIndex(data)
	default:
		return c.foreign(ctx, doc)
	}
	if err != nil {
		return err
	}
	return c.add(x, doc.Layers, c.place.Origin(d))
}

// openAll opens the manifests of an image for several platforms that are caches.
func (c *Cache) openAll(ctx context.Context, list []oci.Descriptor) error {
	if len(list) > maxManifests {
		list = list[:maxManifests]
	}
	none := ErrNoCache
	for _, m := range list {
		if !isDigest(m.Digest, "sha256") {
			return fmt.Errorf("manifest %.80q is not a digest", m.Digest)
		}
		err := c.open(ctx, m.Digest, false)
		if err != nil && !errors.Is(err, ErrNoCache) {
			return err
		}
		if errors.Is(err, errBuildKit) {
			none = err
		}
	}
	if len(c.parts) == 0 {
		return none
	}
	return nil
}

// foreign says what an image is that has no index of ours: BuildKit keeps its
// inline cache in the configuration.
func (c *Cache) foreign(ctx context.Context, doc document) error {
	if doc.Config == nil {
		return ErrNoCache
	}
	data, err := readBlob(ctx, c.place, *doc.Config, maxManifest)
	if err != nil {
		return ErrNoCache // as far as can be told
	}
	var config struct {
		Cache json.RawMessage `json:"moby.buildkit.cache.v0"`
	}
	if json.Unmarshal(data, &config) == nil && len(config.Cache) > 0 {
		return errBuildKit
	}
	return ErrNoCache
}

// add takes in an index and the blobs that its manifest lists.
func (c *Cache) add(x *index, blobs []oci.Descriptor, origin string) error {
	p := part{index: x, blobs: make(map[oci.Digest]oci.Descriptor, len(blobs)), origin: origin}
	for _, b := range blobs {
		if !isDigest(b.Digest, "sha256") || b.Size < 0 || len(b.MediaType) > maxText {
			return fmt.Errorf("blob %.80q of %d bytes is not one", b.Digest, b.Size)
		}
		p.blobs[b.Digest] = oci.Descriptor{MediaType: b.MediaType, Digest: b.Digest, Size: b.Size}
	}
	for i, l := range x.Layers {
		b, ok := p.blobs[l.Blob]
		if l.Blob != "" && (!ok || !isLayer(b.MediaType)) {
			return fmt.Errorf("layer %d: the manifest has no layer %s", i, l.Blob)
		}
		e, ok := p.blobs[l.Entries]
		if l.Entries == "" || c.entries[l.DiffID] != nil {
			continue
		}
		if !ok || e.MediaType != entriesType {
			return fmt.Errorf("layer %d: the manifest has no entries %s", i, l.Entries)
		}
		want := &entriesOf{desc: e}
		if l.Content != l.DiffID {
			want.content = l.Content
		}
		c.entries[l.DiffID] = want
	}
	if err := c.addMounts(x.Mounts, p.blobs); err != nil {
		return err
	}
	for i, r := range x.Records {
		for _, k := range r.Keys {
			if had, ok := c.records[k]; !ok || c.outlasts(r, had, x) {
				c.records[k] = found{len(c.parts), i}
			}
		}
	}
	c.parts = append(c.parts, p)
	return nil
}

// outlasts reports whether r is good for longer than a record that was found
// before it: of an earlier part, or of x, which is being added.
func (c *Cache) outlasts(r indexRecord, had found, x *index) bool {
	if had.part < len(c.parts) {
		x = c.parts[had.part].index
	}
	until := x.Records[had.record].Expires
	return !until.IsZero() && (r.Expires.IsZero() || r.Expires.After(until))
}

func isLayer(mediaType string) bool {
	switch mediaType {
	case specs.MediaTypeImageLayer, specs.MediaTypeImageLayerGzip, specs.MediaTypeImageLayerZstd,
		"application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.diff.tar":
		return true
	}
	return false
}

// Place is where the cache is.
func (c *Cache) Place() Place { return c.place }

// Len is the number of keys.
func (c *Cache) Len() int { return len(c.records) }

// Origins are those of the cache's layers.
func (c *Cache) Origins() []string {
	var out []string
	for _, p := range c.parts {
		out = append(out, p.origin)
	}
	return out
}

// Lookup finds the record under key, unless it has expired. Its layers are as
// those of a pulled image, and nothing of them has been fetched; a layer of a base
// image has a diff ID and no more, and is to be found by its caller.
func (c *Cache) Lookup(key oci.Digest) (Record, bool) {
	at, ok := c.records[key]
	if !ok {
		return Record{}, false
	}
	p := c.parts[at.part]
	r := p.index.Records[at.record]
	if !r.Expires.IsZero() && c.now().After(r.Expires) {
		return Record{}, false
	}
	out := Record{Keys: r.Keys, Created: r.Created, Expires: r.Expires, Parts: r.Parts, Layers: make([]oci.Layer, len(r.Layers))}
	for i, n := range r.Layers {
		l := p.index.Layers[n]
		out.Layers[i] = oci.Layer{DiffID: l.DiffID, Content: l.Content}
		if l.Blob == "" {
			continue
		}
		b := p.blobs[l.Blob]
		out.Layers[i] = oci.Layer{
			ID:      strings.Replace(l.DiffID.String(), ":", "-", 1),
			Content: l.Content, DiffID: l.DiffID, TarSize: l.TarSize,
			Blob: &b, Origin: p.origin, Created: l.Created, Imported: true,
		}
		if l.Epoch != nil {
			out.Layers[i].Epoch = time.Unix(*l.Epoch, 0).UTC()
		}
	}
	return out, true
}

// Entries is what the layer with a diff ID changes, fetched at the first call.
// false: the cache does not know.
func (c *Cache) Entries(ctx context.Context, diffID oci.Digest) ([]tree.Change, bool, error) {
	e := c.entries[diffID]
	if e == nil {
		return nil, false, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.done {
		e.changes, e.err = c.readEntries(ctx, e)
		e.done = ctx.Err() == nil
	}
	return e.changes, true, e.err
}

func (c *Cache) readEntries(ctx context.Context, e *entriesOf) ([]tree.Change, error) {
	data, err := readBlob(ctx, c.place, e.desc, maxEntries)
	if err == nil {
		data, err = unpackEntries(data)
	}
	var changes []tree.Change
	if err == nil {
		changes, err = layer.Collect(layer.ReadEntries(bytes.NewReader(data)))
	}
	if err != nil {
		return nil, fmt.Errorf("entries %s of %s: %w", e.desc.Digest, c.place, err)
	}
	if e.content != "" && layer.Digest(changes) != e.content {
		return nil, fmt.Errorf("entries %s of %s: they are not of the layer %s", e.desc.Digest, c.place, e.content)
	}
	return changes, nil
}

// packEntries is the bytes of a list: the same for a layer wherever it lies, so
// that they are sent once. What only its files here have is left out: inode
// numbers, and of times what its tar, with epoch, does not keep.
func packEntries(changes []tree.Change, epoch time.Time) ([]byte, error) {
	changes = slices.Clone(changes)
	for i := range changes {
		c := &changes[i]
		c.Ino, c.Nlink = 0, 0
		if c.Removed {
			continue
		}
		if c.ModTime = time.Unix(c.ModTime.Unix(), 0); !epoch.IsZero() && c.ModTime.After(epoch) {
			c.ModTime = epoch
		}
	}
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	err = layer.WriteEntries(z, changes)
	if cerr := z.Close(); err == nil {
		err = cerr
	}
	return b.Bytes(), err
}

func unpackEntries(data []byte) ([]byte, error) {
	z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxEntriesOpen))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	out, err := io.ReadAll(io.LimitReader(z, maxEntriesOpen+1))
	if err == nil && len(out) > maxEntriesOpen {
		err = fmt.Errorf("more than %d bytes", maxEntriesOpen)
	}
	return out, err
}
