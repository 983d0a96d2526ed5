package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
)

// machine is a state directory, whose cache mounts travel.
type machine struct {
	*cache.Store
	t     testing.TB
	warns []string
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	s, err := cache.Open(t.Context(), t.TempDir(), nil) // no layers, so no driver
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if problems := s.Check(context.Background()); len(problems) > 0 {
			t.Errorf("the state directory is damaged: %v", problems)
		}
		s.Close(context.Background())
	})
	return &machine{Store: s, t: t}
}

// mount is the directory of a cache mount, restored from c, if that has it.
func (m *machine) mount(id string, c *Cache) (dir string, fetched int64) {
	m.t.Helper()
	init := cache.MountInit{Fill: func(string) error { return nil }, Restore: func(dir string) (notes map[string][]byte, err error) {
		s, ok := c.Mount(id)
		if !ok {
			return nil, nil
		}
		notes, fetched, err = c.RestoreMount(m.t.Context(), s, dir, RestoreOptions{Limit: 1 << 40})
		return notes, err
	}}
	dir, release, err := m.CacheMount(m.t.Context(), id, cache.Shared, init)
	if err != nil {
		m.t.Fatal(err)
	}
	release()
	return dir, fetched
}

func (m *machine) options(used bool, ids ...string) Options {
	o := Options{Pool: compress.NewPool(1), Temp: m.t.TempDir(), Mounts: MountOptions{Limit: 1 << 40, Warn: func(text string) { m.warns = append(m.warns, text) }}}
	for _, id := range ids {
		o.Mounts.List = append(o.Mounts.List, Mount{ID: id, Used: used, Hold: func(ctx context.Context, wait time.Duration) (*cache.HeldMount, error) {
			return m.HoldMount(ctx, id, "", min(wait, 10*time.Millisecond))
		}})
	}
	return o
}

// export puts mounts out, and sees to it that nothing is left behind.
func (m *machine) export(p Place, o Options) []MountStats {
	m.t.Helper()
	stats, err := Export(m.t.Context(), p, nil, o)
	if err != nil {
		m.t.Fatal(err)
	}
	if left, err := os.ReadDir(o.Temp); err != nil || len(left) > 0 {
		m.t.Errorf("temporary files are left: %v, %v", left, err)
	}
	return stats.Mounts
}

// memory is a place that counts bytes, in both directions.
type memory struct {
	mu            sync.Mutex
	blobs         map[oci.Digest][]byte
	manifest      []byte
	sent, fetched int64
	puts, asked   int
	broken        error // of Put
}

func newMemory() *memory { return &memory{blobs: map[oci.Digest][]byte{}} }

// clone is a place with the same blobs, of which nothing has been counted.
func (p *memory) clone() *memory {
	return &memory{blobs: maps.Clone(p.blobs), manifest: p.manifest}
}

func (p *memory) String() string { return fmt.Sprintf("memory %p", p) }

func (p *memory) Origin(oci.Digest) string { return "" }

func (p *memory) Manifest(context.Context, oci.Digest) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.manifest == nil {
		return nil, fs.ErrNotExist
	}
	p.fetched += int64(len(p.manifest))
	return p.manifest, nil
}

func (p *memory) Blob(_ context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.blobs[d.Digest]
	if !ok {
		return nil, fs.ErrNotExist
	}
	p.fetched += int64(len(b))
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (p *memory) Has(_ context.Context, d oci.Descriptor) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	_, ok := p.blobs[d.Digest]
	return ok, nil
}

func (p *memory) Put(_ context.Context, d oci.Descriptor, open func() (io.ReadCloser, error), _ []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != nil {
		return p.broken
	}
	if _, ok := p.blobs[d.Digest]; ok {
		return nil
	}
	r, err := open()
	if err != nil {
		return err
	}
	data, err := io.ReadAll(Verify(r, d))
	if err != nil {
		return err
	}
	p.blobs[d.Digest] = data
	p.sent += int64(len(data))
	p.puts++
	return r.Close()
}

func (p *memory) Commit(_ context.Context, manifest []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.manifest = manifest
	p.sent += int64(len(manifest))
	return nil
}

func opened(t testing.TB, p Place) *Cache {
	t.Helper()
	c, err := Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// noise is n bytes that do not compress.
func noise(r *rand.ChaCha8, n int) []byte {
	b := make([]byte, n)
	_, _ = r.Read(b) // never fails
	return b
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// content is what a mount is like: half of it eight large files, half small ones
// of 1 to 31 KiB; nothing that compresses.
type content struct {
	t   testing.TB
	dir string
	src *rand.ChaCha8
	*rand.Rand
	size  int
	small []string
	next  int
}

func newContent(t testing.TB, dir string, size int) *content {
	src := rand.NewChaCha8([32]byte{1})
	c := &content{t: t, dir: dir, src: src, Rand: rand.New(src), size: size}
	for i := range 8 {
		writeFile(t, c.large(i), noise(src, size/16))
	}
	for left := size / 2; left > 0; {
		left -= c.add()
	}
	return c
}

func (c *content) large(i int) string { return fmt.Sprintf("%s/large/%d", c.dir, i) }

// add makes a small file.
func (c *content) add() int {
	path := fmt.Sprintf("%s/small/%02x/%d", c.dir, c.IntN(256), c.next)
	c.next++
	c.small = append(c.small, path)
	return c.rewrite(path)
}

func (c *content) rewrite(path string) int {
	n := 1<<10 + c.IntN(30<<10)
	writeFile(c.t, path, noise(c.src, n))
	return n
}

// changes are ways to change a hundredth of a mount's bytes.
var changes = []struct {
	name   string
	change func(c *content, bytes int)
}{
	{"pages of large files", func(c *content, bytes int) {
		for ; bytes > 0; bytes -= 4096 {
			f, err := os.OpenFile(c.large(c.IntN(8)), os.O_WRONLY, 0)
			if err != nil {
				c.t.Fatal(err)
			}
			if _, err := f.WriteAt(noise(c.src, 4096), int64(c.IntN(c.size/16/4096))*4096); err != nil {
				c.t.Fatal(err)
			}
			f.Close()
		}
	}},
	{"insertions into large files", func(c *content, bytes int) {
		for ; bytes > 0; bytes -= 32 << 10 {
			path := c.large(c.IntN(8))
			b, err := os.ReadFile(path)
			if err != nil {
				c.t.Fatal(err)
			}
			writeFile(c.t, path, slices.Insert(b, c.IntN(len(b)), noise(c.src, 32<<10)...))
		}
	}},
	{"small files rewritten", func(c *content, bytes int) {
		for bytes > 0 {
			bytes -= c.rewrite(c.small[c.IntN(len(c.small))])
		}
	}},
	{"small files removed and new", func(c *content, bytes int) {
		for gone := bytes; gone > 0; {
			path := c.small[c.IntN(len(c.small))]
			st, err := os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err = os.Remove(path); err != nil {
				c.t.Fatal(err)
			}
			gone -= int(st.Size())
		}
		for bytes > 0 {
			bytes -= c.add()
		}
	}},
	{"a large file new, another renamed", func(c *content, bytes int) {
		writeFile(c.t, c.dir+"/large/new", noise(c.src, bytes))
		if err := os.Rename(c.large(3), c.dir+"/large/renamed"); err != nil {
			c.t.Fatal(err)
		}
	}},
	{"only times", func(c *content, _ int) {
		for _, path := range c.small {
			if err := os.Chtimes(path, time.Time{}, time.Now()); err != nil {
				c.t.Fatal(err)
			}
		}
	}},
}

// onePercent has a mount of size bytes put out by one machine, restored and changed
// on another, and put out again from there. f is given what that took, sent and
// fetched together, in parts of the mount's size.
func onePercent(t testing.TB, size int, f func(name string, part float64)) {
	t.Helper()
	one := newMachine(t)
	first := newMemory()
	dir, _ := one.mount("m", nil)
	base := newContent(t, dir, size)
	one.export(first, one.options(true, "m"))
	if n := first.puts; n > size/(8<<20)+8 {
		t.Errorf("%d blobs were sent for a mount of %d bytes, want few", n, size)
	}
	for _, tt := range changes {
		place := first.clone()
		two := newMachine(t)
		c := *base
		c.small = slices.Clone(base.small)
		var fetched int64
		if c.dir, fetched = two.mount("m", opened(t, place)); fetched < int64(size) || float64(fetched) > 1.02*float64(size) {
			t.Errorf("%d bytes were fetched for a mount of %d bytes", fetched, size)
		}
		for i, path := range c.small {
			c.small[i] = c.dir + strings.TrimPrefix(path, dir)
		}
		tt.change(&c, size/100)
		place.sent, place.fetched = 0, 0
		two.export(place, two.options(true, "m"))
		f(tt.name, float64(place.sent+place.fetched)/float64(size))
		three := newMachine(t)
		back, _ := three.mount("m", opened(t, place))
		sameFiles(t, back, c.dir)
		if len(one.warns)+len(two.warns) > 0 {
			t.Errorf("warnings: %v %v", one.warns, two.warns)
		}
		for _, d := range []string{c.dir, back} {
			if err := os.RemoveAll(d); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestOnePercent(t *testing.T) {
	onePercent(t, 16<<20, func(name string, part float64) {
		t.Logf("%s: %.2f %% of the mount's bytes travel", name, 100*part)
		if part > 0.05 {
			t.Errorf("%s: %.2f %% of the mount's bytes travel, want at most 5 %%", name, 100*part)
		}
	})
}

// The same for 500 MB, which takes half a minute: it is counted and not timed.
func BenchmarkOnePercentOf500MB(b *testing.B) {
	for b.Loop() {
		onePercent(b, 500_000_000, func(name string, part float64) {
			b.ReportMetric(100*part, "%_"+strings.ReplaceAll(name, " ", "_"))
			if part > 0.05 {
				b.Errorf("%s: %.2f %% of the mount's bytes travel, want at most 5 %%", name, 100*part)
			}
		})
	}
}

// sameFiles compares names and content of regular files; package chunked's tests
// compare the rest.
func sameFiles(t testing.TB, got, want string) {
	t.Helper()
	list := func(dir string) (out []string) {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				out = append(out, strings.TrimPrefix(p, dir))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	g, w := list(got), list(want)
	if !slices.Equal(g, w) {
		t.Fatalf("%d files came back, want %d", len(g), len(w))
	}
	for _, p := range w {
		a, err := os.ReadFile(got + p)
		b, err2 := os.ReadFile(want + p)
		if err != nil || err2 != nil || string(a) != string(b) {
			t.Errorf("%s came back different: %d bytes, want %d: %v %v", p, len(a), len(b), err, err2)
		}
	}
}
