package cache

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/861fb494/build/internal/oci"
)

// Stamp is what the file system says of a file: see Stats.
type Stamp struct {
	Size         int64
	Mtime, Ctime time.Time
	Ino, Dev     uint64
}

// Stats remembers the content digests of files of one directory by their
// stamps, so that an unchanged directory need not be read again. It proves no
// more than its fields do: any difference, however small, is a file to be read.
type Stats struct {
	store *Store
	path  string

	mu      sync.Mutex
	old     map[string]stat
	fresh   map[string]stat
	changed bool
}

type stat struct {
	stamp  Stamp
	digest oci.Digest
}

const statsFormat = "build stats 1"

// Stats opens what is remembered of the files below the host path root. A file
// that is damaged or of another format is as good as none.
func (s *Store) Stats(root string) *Stats {
	t := &Stats{store: s, path: filepath.Join(s.dir, "stats", shortHash(root)), fresh: map[string]stat{}}
	if b, err := os.ReadFile(t.path); err == nil {
		t.old = parseStats(b)
	}
	return t
}

func parseStats(b []byte) map[string]stat {
	text, err := openRecord(b)
	if err != nil {
		return nil
	}
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, 1<<20)
	if !sc.Scan() || sc.Text() != statsFormat {
		return nil
	}
	out := make(map[string]stat, bytes.Count(text, []byte("\n")))
	for sc.Scan() {
		f := strings.SplitN(sc.Text(), " ", 7)
		if len(f) != 7 {
			return nil
		}
		var n [5]int64
		for i := range n {
			if n[i], err = strconv.ParseInt(f[i], 36, 64); err != nil {
				return nil
			}
		}
		path, err := strconv.Unquote(f[6])
		if err != nil {
			return nil
		}
		out[path] = stat{
			stamp:  Stamp{Size: n[0], Mtime: time.Unix(0, n[1]), Ctime: time.Unix(0, n[2]), Ino: uint64(n[3]), Dev: uint64(n[4])},
			digest: oci.Digest("blake3:" + f[5]),
		}
	}
	return out
}

// Get is the digest of the file at path, if it was put with the same stamp.
func (t *Stats) Get(path string, s Stamp) (oci.Digest, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.old[path]
	if !ok || !e.stamp.equal(s) {
		return "", false
	}
	t.fresh[path] = e
	return e.digest, true
}

func (s Stamp) equal(o Stamp) bool {
	return s.Size == o.Size && s.Ino == o.Ino && s.Dev == o.Dev && s.Mtime.Equal(o.Mtime) && s.Ctime.Equal(o.Ctime)
}

// Put remembers the digest of the file at path.
func (t *Stats) Put(path string, s Stamp, d oci.Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fresh[path] = stat{stamp: s, digest: d}
	t.changed = true
}

// Save writes what was put and what was found. What was not asked for this time
// is kept too, unless its file is gone.
func (t *Stats) Save() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.changed {
		return nil
	}
	var b bytes.Buffer
	b.WriteString(statsFormat)
	line := func(path string, e stat) {
		fmt.Fprintf(&b, "\n%s %s %s %s %s %s %s", base36(e.stamp.Size), base36(e.stamp.Mtime.UnixNano()), base36(e.stamp.Ctime.UnixNano()),
			base36(int64(e.stamp.Ino)), base36(int64(e.stamp.Dev)), e.digest.Encoded(), strconv.Quote(path))
	}
	for p, e := range t.fresh {
		line(p, e)
	}
	for p, e := range t.old {
		if _, ok := t.fresh[p]; ok {
			continue
		}
		if _, err := os.Lstat(p); err == nil {
			line(p, e)
		}
	}
	return t.store.putFile(t.path, sealRecord(b.Bytes()))
}

func base36(n int64) string { return strconv.FormatInt(n, 36) }
