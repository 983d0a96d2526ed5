package source

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/internal/oci"
)

func (h *HTTP) key(u string) string {
	sum := sha256.Sum256([]byte(u))
	return filepath.Join(h.dir, hex.EncodeToString(sum[:16]))
}

func (h *HTTP) dataPath(u string, d oci.Digest) string {
	return h.key(u) + "-" + d.Algorithm().String() + "-" + d.Encoded()
}

// readRecord gives the zero record where there is none, or a damaged one.
func (h *HTTP) readRecord(u string) record {
	var r record
	data, err := os.ReadFile(h.key(u) + ".json")
	text, sum, _ := bytes.Cut(data, []byte("\n"))
	if err != nil || string(sum) != digest.FromBytes(text).String()+"\n" {
		return record{}
	}
	if json.Unmarshal(text, &r) != nil || r.URL != u || r.Digest.Validate() != nil {
		return record{}
	}
	return r
}

func (h *HTTP) writeRecord(r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	data = append(data, "\n"+digest.FromBytes(data).String()+"\n"...)
	temp, err := h.temp()
	if err != nil {
		return err
	}
	return writeAside(temp, h.key(r.URL)+".json", data)
}

// writeAside writes a file under a temporary name in dir first.
func writeAside(dir, path string, data []byte) error {
	f, err := os.CreateTemp(dir, "tmp-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// keepUnused is how long a download that its URL no longer yields is kept for
// builds that may have been pinned to it.
const keepUnused = 24 * time.Hour

// touch marks a download as used: a change of its time, to the same, is that of
// its inode too.
func (h *HTTP) touch(u string, d oci.Digest) error {
	st, err := os.Stat(h.dataPath(u, d))
	if err != nil {
		return err
	}
	return os.Chtimes(h.dataPath(u, d), st.ModTime(), st.ModTime())
}

// sweep removes older downloads of a URL, and what killed processes left. What
// cannot be removed stays.
func (h *HTTP) sweep(u string, keep oci.Digest) {
	list, _ := filepath.Glob(h.key(u) + "-*")
	left, _ := filepath.Glob(filepath.Join(h.dir, "tmp-*"))
	list = append(list, left...)
	for _, p := range list {
		st, err := os.Stat(p)
		if err != nil || p == h.dataPath(u, keep) {
			continue
		}
		c := st.Sys().(*syscall.Stat_t).Ctim
		if time.Since(time.Unix(c.Sec, c.Nsec)) > keepUnused {
			os.Remove(p)
		}
	}
}
