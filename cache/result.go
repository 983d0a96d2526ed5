package cache

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/zeebo/blake3"

	"github.com/861fb494/build/internal/oci"
)

// PutResult keeps data, which says what a build came to, under an ID of its
// content.
func (s *Store) PutResult(data []byte) (oci.Digest, error) {
	sum := blake3.Sum256(data)
	id := hex.EncodeToString(sum[:])
	return oci.Digest("blake3:" + id), writeRecord(filepath.Join(s.dir, "results", id), json.RawMessage(data))
}

// Result is what was kept under id, or under the one ID that begins with it;
// "blake3:" in front may be left out. None is an fs.ErrNotExist.
func (s *Store) Result(id string) ([]byte, error) {
	id = strings.TrimPrefix(id, "blake3:")
	if len(id) < 4 || strings.Trim(id, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("result %q: %w", id, fs.ErrNotExist)
	}
	list, err := os.ReadDir(filepath.Join(s.dir, "results"))
	if err != nil {
		return nil, err
	}
	found := ""
	for _, e := range list {
		if strings.HasPrefix(e.Name(), id) {
			if found != "" {
				return nil, fmt.Errorf("result %q: several begin so", id)
			}
			found = e.Name()
		}
	}
	if found == "" {
		return nil, fmt.Errorf("result %q: %w", id, fs.ErrNotExist)
	}
	var data json.RawMessage
	err = readRecord(filepath.Join(s.dir, "results", found), &data)
	var damaged *DamagedError
	if errors.As(err, &damaged) {
		os.Remove(filepath.Join(s.dir, "results", found))
	}
	return data, err
}
