package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/861fb494/build/internal/oci"
)

// compressed is the record of what a layer is once it is compressed:
// records/compressed/<diff ID's digits>.<first 16 digits of the recipe's
// sha256>, as JSON.
type compressed struct {
	DiffID oci.Digest     `json:"diffID"`
	Recipe string         `json:"recipe"`
	Blob   oci.Descriptor `json:"blob"`
}

func (s *Store) compressedPath(diffID oci.Digest, recipe string) string {
	sum := sha256.Sum256([]byte(recipe))
	return filepath.Join(s.dir, "records", "compressed", diffID.Encoded()+"."+hex.EncodeToString(sum[:8]))
}

// Compressed is the descriptor that the layer diffID had when it was last
// compressed by recipe. The recipe names all that decides the bytes:
// compressor, version, level and block size. The blob need not be here.
// A damaged record is as good as none.
func (s *Store) Compressed(diffID oci.Digest, recipe string) (oci.Descriptor, bool) {
	if diffID.Validate() != nil {
		return oci.Descriptor{}, false
	}
	path := s.compressedPath(diffID, recipe)
	data, err := readSealed(path)
	if err != nil {
		return oci.Descriptor{}, false
	}
	var r compressed
	if json.Unmarshal(data, &r) != nil || r.DiffID != diffID || r.Recipe != recipe || r.Blob.Digest.Validate() != nil {
		return oci.Descriptor{}, false
	}
	now := s.now()
	_ = os.Chtimes(path, now, now) // Prune goes by last use
	return r.Blob, true
}

// SetCompressed records that the layer diffID compressed by recipe is blob.
func (s *Store) SetCompressed(diffID oci.Digest, recipe string, blob oci.Descriptor) error {
	if err := diffID.Validate(); err != nil {
		return fmt.Errorf("record compressed layer %q: %w", string(diffID), err)
	}
	data, err := json.Marshal(compressed{DiffID: diffID, Recipe: recipe, Blob: blob})
	if err != nil {
		return err
	}
	if err := s.writeRecord(s.compressedPath(diffID, recipe), data); err != nil {
		return fmt.Errorf("record compressed layer %s: %w", diffID, err)
	}
	return nil
}

// maxOrigins is how many repositories are kept for a blob; the latest count.
const maxOrigins = 8

func (s *Store) originPath(d oci.Digest) string {
	return filepath.Join(s.dir, "records", "origin", d.Encoded())
}

// Origins are the repositories that blob d is known to be in, the latest
// first: "docker.io/library/node". A push to the same registry mounts the blob
// from there instead of uploading it, and where the blob is not here it can be
// fetched from there.
func (s *Store) Origins(d oci.Digest) []string {
	if d.Validate() != nil {
		return nil
	}
	data, err := readSealed(s.originPath(d))
	if err != nil {
		return nil
	}
	return strings.Fields(string(data))
}

// AddOrigin records that blob d is in repository.
func (s *Store) AddOrigin(d oci.Digest, repository string) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("record origin of blob %q: %w", string(d), err)
	}
	old := s.Origins(d)
	if len(old) > 0 && old[0] == repository {
		return nil
	}
	// Two writers at once: one repository of the two is lost, which costs an
	// upload later and nothing else.
	list := append([]string{repository}, slices.DeleteFunc(old, func(r string) bool { return r == repository })...)
	list = list[:min(len(list), maxOrigins)]
	if err := s.writeRecord(s.originPath(d), []byte(strings.Join(list, "\n")+"\n")); err != nil {
		return fmt.Errorf("record origin of blob %s: %w", d, err)
	}
	return nil
}

// readSealed reads a record. One that is damaged is an ErrDamaged.
func readSealed(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	data, ok := unseal(b)
	if !ok {
		return nil, fmt.Errorf("%s: %w", path, ErrDamaged)
	}
	return data, nil
}

// writeRecord writes a record that may get lost: it is not synced, since its
// reader checks it.
func (s *Store) writeRecord(path string, data []byte) error {
	d, err := s.draft()
	if err != nil {
		return err
	}
	defer d.Discard()
	if _, err := d.Write(seal(data)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return d.Commit(path)
}
