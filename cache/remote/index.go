package remote

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/internal/oci"
)

// Media types; see the package's documentation.
const (
	ArtifactType = "application/vnd.build-cache.v1"
	indexType    = "application/vnd.build-cache.index.v1+json"
	entriesType  = "application/vnd.build-cache.entries.v1+zstd"
	mountType    = "application/vnd.build-cache.mount.v1+zstd"
	packType     = "application/vnd.build-cache.chunks.v1+zstd"
)

// InlineAnnotation is the manifest annotation that holds the index of a cache
// which is an image.
const InlineAnnotation = "vnd.build-cache.index.v1"

// version is the form's.
const version = 1

// Bounds of what is taken from elsewhere. They are far above what a build makes,
// and low enough that nobody is kept busy.
const (
	maxManifest    = 8 << 20   // bytes
	maxIndex       = 64 << 20  // bytes
	maxEntries     = 64 << 20  // bytes of a list of entries, compressed
	maxEntriesOpen = 512 << 20 // bytes of it, decompressed
	maxLayers      = 20_000
	maxRecords     = 200_000
	maxChain       = 500 // layers of a result: overlayfs takes no more
	maxKeys        = 4
	maxParts       = 10_000
	maxMounts      = 1000
	maxPackBlob    = 20 << 20 // bytes of a pack, compressed
	maxText        = 4 << 10  // bytes of a name or a value
)

// index is the form of the cache's index.
type index struct {
	Version int           `json:"version"`
	Layers  []indexLayer  `json:"layers"`
	Records []indexRecord `json:"records"`
	Mounts  []indexMount  `json:"mounts"`
}

type indexLayer struct {
	DiffID  oci.Digest `json:"diffID"`
	Content oci.Digest `json:"content"`
	Blob    oci.Digest `json:"blob,omitempty"`
	TarSize int64      `json:"tarSize,omitempty"`
	Created time.Time  `json:"created,omitzero"`
	Epoch   *int64     `json:"epoch,omitempty"`
	Entries oci.Digest `json:"entries,omitempty"`
}

type indexRecord struct {
	Keys    []oci.Digest `json:"keys"`
	Layers  []int        `json:"layers"`
	Created time.Time    `json:"created,omitzero"`
	Expires time.Time    `json:"expires,omitzero"`
	Parts   []cache.Part `json:"parts,omitempty"`
}

// encode is the JSON of documents: the same value gives the same bytes.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// parseIndex reads an index and holds it to its bounds.
func parseIndex(data []byte) (*index, error) { return decodeIndex(data, nil) }

// decodeIndex is parseIndex; complete, if not nil, comes before the checks.
func decodeIndex(data []byte, complete func(*index) error) (*index, error) {
	var word struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &word); err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	if word.Version != version {
		return nil, fmt.Errorf("its index is of version %d; this program reads version %d", word.Version, version)
	}
	var x index
	if err := json.Unmarshal(data, &x); err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	if complete != nil {
		if err := complete(&x); err != nil {
			return nil, fmt.Errorf("read the index: %w", err)
		}
	}
	if err := x.check(); err != nil {
		return nil, fmt.Errorf("read the index: %w", err)
	}
	return &x, nil
}

func (x *index) check() error {
	if len(x.Layers) > maxLayers || len(x.Records) > maxRecords {
		return fmt.Errorf("%d layers and %d records; at most %d and %d are taken", len(x.Layers), len(x.Records), maxLayers, maxRecords)
	}
	for i, l := range x.Layers {
		switch {
		case !isDigest(l.DiffID, "sha256"):
			return fmt.Errorf("layer %d: diff ID %.80q is not a digest", i, l.DiffID)
		case !isDigest(l.Content, "blake3", "sha256"):
			return fmt.Errorf("layer %d: content %.80q is not a digest", i, l.Content)
		case l.Blob != "" && !isDigest(l.Blob, "sha256"):
			return fmt.Errorf("layer %d: blob %.80q is not a digest", i, l.Blob)
		case l.Blob == "" && l.Content != l.DiffID:
			return fmt.Errorf("layer %d: neither a blob nor a base image's", i)
		case l.Entries != "" && !isDigest(l.Entries, "sha256"):
			return fmt.Errorf("layer %d: entries %.80q is not a digest", i, l.Entries)
		case l.TarSize < 0:
			return fmt.Errorf("layer %d: size %d", i, l.TarSize)
		}
	}
	for i, r := range x.Records {
		if err := r.check(len(x.Layers)); err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
	}
	if len(x.Mounts) > maxMounts {
		return fmt.Errorf("%d mounts; at most %d are taken", len(x.Mounts), maxMounts)
	}
	for i, m := range x.Mounts {
		if err := m.check(); err != nil {
			return fmt.Errorf("mount %d: %w", i, err)
		}
	}
	return nil
}

func (r indexRecord) check(layers int) error {
	if len(r.Keys) == 0 || len(r.Keys) > maxKeys || len(r.Layers) > maxChain || len(r.Parts) > maxParts {
		return fmt.Errorf("%d keys, %d layers, %d parts; at most %d, %d and %d are taken", len(r.Keys), len(r.Layers), len(r.Parts), maxKeys, maxChain, maxParts)
	}
	for _, k := range r.Keys {
		if !isDigest(k, "blake3", "sha256") {
			return fmt.Errorf("key %.80q is not a digest", k)
		}
	}
	for _, n := range r.Layers {
		if n < 0 || n >= layers {
			return fmt.Errorf("layer %d of %d", n, layers)
		}
	}
	for _, p := range r.Parts {
		if len(p.Name) > maxText || len(p.Value) > maxText {
			return fmt.Errorf("a part of %d and %d bytes; at most %d are taken", len(p.Name), len(p.Value), maxText)
		}
	}
	return nil
}

// isDigest reports whether d is 32 bytes of one of the algorithms, in lower case.
func isDigest(d oci.Digest, algorithms ...string) bool {
	name, text, _ := strings.Cut(string(d), ":")
	for _, a := range algorithms {
		if name == a {
			return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
		}
	}
	return false
}

// ErrNoCache is the error for a place that has something, but not a cache.
var ErrNoCache = errors.New("it is not a build cache")

// errBuildKit refuses what BuildKit wrote.
var errBuildKit = fmt.Errorf("%w that build can read: it is BuildKit's, in a form of its own; export one with --cache-to", ErrNoCache)

// buildkit reports whether a media type is of BuildKit's caches.
func buildkit(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.buildkit.cacheconfig.")
}

// document is a manifest, or an index of manifests.
type document struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Config       *oci.Descriptor   `json:"config"`
	Layers       []oci.Descriptor  `json:"layers"`
	Manifests    []oci.Descriptor  `json:"manifests"`
	Annotations  map[string]string `json:"annotations"`
}

func parseDocument(data []byte) (document, error) {
	var d document
	if len(data) > maxManifest {
		return d, fmt.Errorf("its manifest has %d bytes; at most %d are taken", len(data), maxManifest)
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return d, fmt.Errorf("%w: read the manifest: %w", ErrNoCache, err)
	}
	for _, m := range d.Manifests {
		if buildkit(m.MediaType) {
			return d, errBuildKit
		}
	}
	if d.Config != nil && buildkit(d.Config.MediaType) {
		return d, errBuildKit
	}
	return d, nil
}

// newManifest is the manifest of a cache.
func newManifest(config oci.Descriptor, blobs []oci.Descriptor) ([]byte, error) {
	m := oci.Manifest{MediaType: specs.MediaTypeImageManifest, ArtifactType: ArtifactType, Config: config, Layers: blobs}
	m.SchemaVersion = 2
	return encode(m)
}
