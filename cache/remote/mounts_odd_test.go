package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/chunked"
	"github.com/861fb494/build/internal/oci"
)

func (m *machine) write(dir, name string, seed byte, n int) {
	m.t.Helper()
	writeFile(m.t, filepath.Join(dir, name), noise(rand.NewChaCha8([32]byte{seed}), n))
}

// warned takes the one warning that there is.
func (m *machine) warned(want string) {
	m.t.Helper()
	if len(m.warns) != 1 || !strings.Contains(m.warns[0], want) {
		m.t.Errorf("warnings: %q, want one with %q", m.warns, want)
	}
	m.warns = nil
}

func (m *machine) quiet() {
	m.t.Helper()
	if len(m.warns) > 0 {
		m.t.Errorf("warnings: %q, want none", m.warns)
	}
}

// stored is a mount with one file of 100 KB that a place has.
func stored(t *testing.T) (*machine, *memory, string) {
	t.Helper()
	m, place := newMachine(t), newMemory()
	dir, _ := m.mount("m", nil)
	m.write(dir, "f", 1, 100_000)
	m.export(place, m.options(true, "m"))
	m.quiet()
	return m, place, dir
}

// packOf is a pack of the mount m.
func packOf(t *testing.T, p Place) oci.Digest {
	t.Helper()
	s, ok := opened(t, p).Mount("m")
	if !ok || len(s.packs) == 0 {
		t.Fatalf("the cache has the mount %+v, %v", s, ok)
	}
	return s.packs[0].Digest
}

func TestMountIsKeptOrReplaced(t *testing.T) {
	one, place, dir := stored(t)
	two := newMachine(t)
	old, _ := two.mount("m", nil)
	two.write(old, "mine", 2, 1000)
	has := func(want string) {
		t.Helper()
		back, _ := newMachine(t).mount("m", opened(t, place))
		sameFiles(t, back, want)
	}
	// Not used there: it may be older than what the cache has.
	stats := two.export(place, two.options(false, "m"))
	if len(stats) != 1 || !stats[0].Kept || stats[0].Sent != 0 {
		t.Errorf("Export = %+v, want the mount to be kept", stats)
	}
	has(dir)
	// Used there: it is what the next one gets.
	stats = two.export(place, two.options(true, "m"))
	if len(stats) != 1 || stats[0].Kept || stats[0].Sent == 0 {
		t.Errorf("Export = %+v, want the mount to be sent", stats)
	}
	has(old)
	// It was used and is gone.
	if err := os.RemoveAll(old); err != nil {
		t.Fatal(err)
	}
	stats = two.export(place, two.options(true, "m"))
	two.warned("left out of the cache: cache mount m: file does not exist; what the cache has of it stays")
	if len(stats) != 1 || !stats[0].Kept {
		t.Errorf("Export = %+v, want the mount to be kept", stats)
	}
	// Mounts of which nothing is known here, but how their ids begin.
	o := one.options(true)
	o.Mounts.Keep = []string{"m"}
	if stats = one.export(place, o); len(stats) != 1 || !stats[0].Kept {
		t.Errorf("Export = %+v, want the mount to be kept", stats)
	}
	// Mounts that no step has go.
	if stats = one.export(place, one.options(true, "other")); len(stats) != 0 {
		t.Errorf("Export = %+v, want no mount", stats)
	}
	one.warned("other is left out")
}

// What a place has lost is sent again; a mount that cannot be had as a whole is
// none.
func TestLostBlobsOfMounts(t *testing.T) {
	m, place, dir := stored(t)
	pack := packOf(t, place)
	delete(place.blobs, pack)
	if stats := m.export(place, m.options(true, "m")); len(stats) != 1 || stats[0].Sent < 100_000 {
		t.Errorf("Export = %+v, want the lost pack to be sent", stats)
	}
	m.quiet()
	back, _ := newMachine(t).mount("m", opened(t, place))
	sameFiles(t, back, dir)

	delete(place.blobs, packOf(t, place))
	if stats := m.export(place, m.options(false, "m")); len(stats) != 1 || stats[0].Kept {
		t.Errorf("Export = %+v, want the mount to be sent though it was not used", stats)
	}
	delete(place.blobs, packOf(t, place))
	if stats := newMachine(t).export(place, newMachine(t).options(false, "m")); len(stats) != 0 {
		t.Errorf("Export = %+v, want no mount", stats)
	}

	// The list: a note of it is here, or it is sent as a whole.
	m.export(place, m.options(true, "m"))
	s, _ := opened(t, place).Mount("m")
	delete(place.blobs, s.list.Digest)
	if stats := m.export(place, m.options(true, "m")); len(stats) != 1 || stats[0].Sent > 50_000 || stats[0].Sent == 0 {
		t.Errorf("Export = %+v, want the list to be sent", stats)
	}
	m.quiet()
	s, _ = opened(t, place).Mount("m")
	place.blobs[s.list.Digest] = []byte("damaged")
	two := newMachine(t)
	own, _ := two.mount("m", nil)
	two.write(own, "f", 1, 100_000)
	if stats := two.export(place, two.options(true, "m")); len(stats) != 1 {
		t.Errorf("Export = %+v, want the mount to be sent", stats)
	}
	two.warned("the cache mount m is sent as a whole")
}

// What is damaged is sent again under other digests: a place takes those that it
// has to be there.
func TestDamagedMountIsMended(t *testing.T) {
	for _, list := range []bool{true, false} {
		_, place, _ := stored(t)
		s, _ := opened(t, place).Mount("m")
		bad := s.packs[0].Digest
		if list {
			bad = s.list.Digest
		}
		place.blobs[bad] = []byte("damaged")
		m := newMachine(t)
		dir, _ := m.mount("m", nil)
		m.write(dir, "f", 1, 100_000) // what the cache had
		o := m.options(true, "m")
		o.Mounts.List[0].Damaged = true
		if stats := m.export(place, o); len(stats) != 1 || stats[0].Sent < 100_000 {
			t.Errorf("Export = %+v, want all to be sent", stats)
		}
		m.quiet()
		back, _ := newMachine(t).mount("m", opened(t, place))
		sameFiles(t, back, dir)
	}
}

func TestMountIsCopiedFromAnotherCache(t *testing.T) {
	_, from, dir := stored(t)
	to := newMemory()
	m := newMachine(t)
	o := m.options(false, "m")
	o.Mounts.From = func(string) []*Cache { return []*Cache{opened(t, from)} }
	if stats := m.export(to, o); len(stats) != 1 || !stats[0].Kept || stats[0].Sent < 100_000 {
		t.Errorf("Export = %+v, want the mount to be copied", stats)
	}
	back, _ := newMachine(t).mount("m", opened(t, to))
	sameFiles(t, back, dir)
	delete(from.blobs, packOf(t, from))
	if stats := m.export(newMemory(), o); len(stats) != 0 {
		t.Errorf("Export = %+v, want nothing", stats)
	}
	m.warned("copy it from memory")
	if _, err := m.HoldMount(t.Context(), "m", "", 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a copied mount is here: %v", err)
	}
}

func TestMountLimit(t *testing.T) {
	m, place, dir := stored(t)
	o := m.options(true, "m")
	o.Mounts.Limit = 150_000
	m.write(dir, "g", 2, 100_000)
	if stats := m.export(place, o); len(stats) != 1 || !stats[0].Kept || stats[0].Size != 100_000 {
		t.Errorf("Export = %+v, want what was there before", stats)
	}
	m.warned("it has more than mounts-max-size=146.5KiB; what the cache has of it stays")
	o.Mounts.Limit = 50_000
	if stats := m.export(place, o); len(stats) != 0 {
		t.Errorf("Export = %+v, want no mount", stats)
	}
	m.warned("it has more than mounts-max-size=48.83KiB")
	m.export(place, m.options(true, "m"))
	c := opened(t, place)
	s, _ := c.Mount("m")
	fetched := place.fetched
	if _, _, err := c.RestoreMount(t.Context(), s, t.TempDir(), RestoreOptions{Limit: s.Size - 1}); !errors.Is(err, chunked.ErrTooLarge) || place.fetched != fetched {
		t.Errorf("RestoreMount = %v, want that it is too large, and nothing fetched", err)
	}
}

// Other steps use the mount while it is put out.
func TestMountInUse(t *testing.T) {
	m, place, dir := stored(t)
	m.write(dir, "g", 2, 5000)
	held := func(sharing string) func() {
		t.Helper()
		_, release, err := m.CacheMount(t.Context(), "m", sharing, cache.MountInit{})
		if err != nil {
			t.Fatal(err)
		}
		return release
	}
	release := held(cache.Locked)
	if stats := m.export(place, m.options(true, "m")); len(stats) != 1 || !stats[0].Kept {
		t.Errorf("Export = %+v, want the mount to be kept", stats)
	}
	m.warned("a step of another build uses it; what the cache has of it stays")
	release()

	release = held(cache.Shared)
	defer release()
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if stats := m.export(place, m.options(true, "m")); len(stats) != 1 || stats[0].Kept || stats[0].Size != 105_000 {
		t.Errorf("Export = %+v, want the mount without the file that is written", stats)
	}
	m.warned(`the cache has a file of the cache mount m not: "/log": somebody has it open for writing`)
}

func TestMountPlaceFails(t *testing.T) {
	m, place, dir := stored(t)
	m.write(dir, "g", 2, 40<<20)
	place.broken = errors.New("no space there")
	o := m.options(true, "m")
	if _, err := Export(t.Context(), place, nil, o); !errors.Is(err, place.broken) {
		t.Errorf("Export = %v, want the place's error", err)
	}
	m.quiet()
	if left, _ := os.ReadDir(o.Temp); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	place.broken = nil
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Export(ctx, place, nil, o); !errors.Is(err, context.Canceled) {
		t.Errorf("Export = %v, want that it was cancelled", err)
	}
	m.quiet()
	// No room for packs here: the mount is left out, the rest is put out.
	o.Temp = filepath.Join(t.TempDir(), "gone")
	if _, err := Export(t.Context(), place, nil, o); err != nil {
		t.Error(err)
	}
	m.warned("no such file or directory; what the cache has of it stays")
}

// Exports one after another leave neither much that nobody needs, nor many packs.
func TestManyExports(t *testing.T) {
	m, place := newMachine(t), newMemory()
	dir, _ := m.mount("m", nil)
	const files, each = 100, 20_000
	for i := range files {
		m.write(dir, fmt.Sprint(i), byte(i), each)
	}
	m.export(place, m.options(true, "m"))
	src := rand.NewChaCha8([32]byte{99})
	r := rand.New(src)
	place.sent = 0
	for range 60 {
		for range 2 {
			writeFile(t, fmt.Sprintf("%s/%d", dir, r.IntN(files)), noise(src, each))
		}
		m.export(place, m.options(true, "m"))
	}
	m.quiet()
	s, _ := opened(t, place).Mount("m")
	if len(s.packs) > 30 || s.Fetched() > 3*files*each {
		t.Errorf("a mount of %d bytes is %d bytes in %d packs after 60 exports, want less than 3 times that, in at most 30", files*each, s.Fetched(), len(s.packs))
	}
	if fresh := int64(60 * 2 * each); place.sent > 3*fresh {
		t.Errorf("%d bytes were sent for %d new ones, want less than 3 times that", place.sent, fresh)
	}
	back, _ := newMachine(t).mount("m", opened(t, place))
	sameFiles(t, back, dir)
}

func TestRepack(t *testing.T) {
	const mb = 1 << 20
	full, half, empty := packUse{16 * mb, 16 * mb}, packUse{7 * mb, 16 * mb}, packUse{0, 16 * mb}
	little, small := packUse{1 * mb, 16 * mb}, packUse{1 * mb, 1 * mb}
	tests := []struct {
		name         string
		packs        []packUse
		fresh, total int64
		want         []int
	}{
		{"nothing", nil, 0, 0, nil},
		{"full ones stay", []packUse{full, full}, 100 * mb, 500 * mb, nil},
		{"those that nobody needs go by themselves", []packUse{empty}, 100 * mb, 500 * mb, nil},
		{"half empty, much is new", []packUse{full, half}, 100 * mb, 500 * mb, []int{1}},
		{"half empty, little is new", []packUse{full, half}, 5 * mb, 250 * mb, nil},
		{"the cheapest first", []packUse{half, little, half}, 16 * mb, 100 * mb, []int{0, 1}},
		{"a large mount may always have a little done", []packUse{little, half}, 0, 100 * mb, []int{0}},
		{"few small ones", slices.Repeat([]packUse{small}, 8), 100 * mb, 8 * mb, nil},
		{"many small ones", slices.Repeat([]packUse{small}, 9), 6 * mb, 9 * mb, []int{0, 1, 2}},
		{"far too many", slices.Repeat([]packUse{{5 * mb, 5 * mb}}, 70), 0, 8 * mb, []int{0, 1, 2, 3, 4}},
	}
	for _, tt := range tests {
		var got []int
		for i, again := range repack(tt.packs, tt.fresh, tt.total) {
			if again {
				got = append(got, i)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: repack(%v, %d, %d) = %v, want %v", tt.name, tt.packs, tt.fresh, tt.total, got, tt.want)
		}
	}
}

// An index that says of mounts what cannot be is refused as a whole; a list or a
// pack that is not what the index says is not restored.
func TestHostileMounts(t *testing.T) {
	_, good, _ := stored(t)
	// rewrite changes the index, and the manifest if it has to.
	rewrite := func(change func(*index, *document)) *memory {
		t.Helper()
		p := good.clone()
		var doc document
		var x index
		if err := json.Unmarshal(p.manifest, &doc); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(p.blobs[doc.Config.Digest], &x); err != nil {
			t.Fatal(err)
		}
		change(&x, &doc)
		data, err := encode(x)
		if err != nil {
			t.Fatal(err)
		}
		*doc.Config = descriptor(indexType, data)
		p.blobs[doc.Config.Digest] = data
		if p.manifest, err = encode(doc); err != nil {
			t.Fatal(err)
		}
		return p
	}
	mount := func(change func(*indexMount)) func(*index, *document) {
		return func(x *index, _ *document) { change(&x.Mounts[0]) }
	}
	other := oci.Digest("sha256:" + strings.Repeat("0", 64))
	for name, change := range map[string]func(*index, *document){
		"no id":                       mount(func(m *indexMount) { m.ID = "" }),
		"a long id":                   mount(func(m *indexMount) { m.ID = strings.Repeat("x", maxText+1) }),
		"no list":                     mount(func(m *indexMount) { m.List = "" }),
		"a list that is a path":       mount(func(m *indexMount) { m.List = "sha256:../../../etc/passwd" }),
		"a list that is not there":    mount(func(m *indexMount) { m.List = other }),
		"a list that is a pack":       mount(func(m *indexMount) { m.List = m.Packs[0] }),
		"a pack that is not there":    mount(func(m *indexMount) { m.Packs[0] = other }),
		"a pack that is a list":       mount(func(m *indexMount) { m.Packs[0] = m.List }),
		"a pack that is a path":       mount(func(m *indexMount) { m.Packs[0] = "../x" }),
		"too many packs":              mount(func(m *indexMount) { m.Packs = slices.Repeat(m.Packs, chunked.MaxPacks+1) }),
		"a negative size":             mount(func(m *indexMount) { m.Size = -1 }),
		"a negative number of files":  mount(func(m *indexMount) { m.Files = -1 }),
		"too many mounts":             func(x *index, _ *document) { x.Mounts = slices.Repeat(x.Mounts, maxMounts+1) },
		"a pack too large":            func(_ *index, d *document) { d.Layers[1].Size = maxPackBlob + 1 },
		"a list too large":            func(_ *index, d *document) { d.Layers[0].Size = chunked.MaxList + 1 },
		"a pack of an unknown format": func(_ *index, d *document) { d.Layers[1].MediaType = "application/octet-stream" },
	} {
		if _, err := Open(t.Context(), rewrite(change)); err == nil {
			t.Errorf("a cache with %s is opened", name)
		}
	}
	for name, change := range map[string]func(*index, *document){
		"less size than it has":  mount(func(m *indexMount) { m.Size = 1 }),
		"more packs than it has": mount(func(m *indexMount) { m.Packs = slices.Repeat(m.Packs, 2) }),
		"fewer packs":            mount(func(m *indexMount) { m.Packs = nil }),
	} {
		c := opened(t, rewrite(change))
		s, _ := c.Mount("m")
		if _, _, err := c.RestoreMount(t.Context(), s, t.TempDir(), RestoreOptions{Limit: 1 << 30}); err == nil {
			t.Errorf("a mount with %s is restored", name)
		}
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"changed":  func(b []byte) []byte { b = slices.Clone(b); b[len(b)/2] ^= 1; return b },
		"cut off":  func(b []byte) []byte { return b[:len(b)-1] },
		"extended": func(b []byte) []byte { return append(slices.Clone(b), 0) },
		"empty":    func([]byte) []byte { return nil },
	} {
		for _, list := range []bool{true, false} {
			p := good.clone()
			s, _ := opened(t, p).Mount("m")
			d := s.packs[0].Digest
			if list {
				d = s.list.Digest
			}
			p.blobs[d] = spoil(p.blobs[d])
			if _, _, err := opened(t, p).RestoreMount(t.Context(), s, t.TempDir(), RestoreOptions{Limit: 1 << 30}); !errors.Is(err, ErrDamaged) {
				t.Errorf("RestoreMount of a mount with a blob that is %s (list: %v) = %v, want that it is damaged", name, list, err)
			}
		}
	}
}

// flaky is a place that some blobs cannot be read from now.
type flaky struct {
	*memory
	bad  oci.Digest
	open bool // it fails while it is read
}

func (f flaky) Blob(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	switch {
	case d.Digest != f.bad:
		return f.memory.Blob(ctx, d)
	case f.open:
		return io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF)), nil
	}
	return nil, errors.New("connection refused")
}

// What may be had another time is not taken for damaged.
func TestRestoreMountFails(t *testing.T) {
	_, place, _ := stored(t)
	s, _ := opened(t, place).Mount("m")
	restore := func(p Place, dir string) error {
		_, _, err := opened(t, p).RestoreMount(t.Context(), s, dir, RestoreOptions{Limit: 1 << 30})
		return err
	}
	for _, d := range []oci.Digest{s.list.Digest, s.packs[0].Digest} {
		for _, open := range []bool{true, false} {
			if err := restore(flaky{place, d, open}, t.TempDir()); err == nil || errors.Is(err, ErrDamaged) {
				t.Errorf("RestoreMount of what cannot be read now = %v, want an error, and not of damage", err)
			}
		}
		gone := place.clone()
		delete(gone.blobs, d)
		if err := restore(gone, t.TempDir()); !errors.Is(err, ErrDamaged) {
			t.Errorf("RestoreMount of what is gone = %v, want that it is damaged", err)
		}
	}
	full := t.TempDir()
	writeFile(t, full+"/f", []byte("in the way"))
	if err := restore(place, full); err == nil || errors.Is(err, ErrDamaged) {
		t.Errorf("RestoreMount where it cannot be written = %v, want an error, and not of damage", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := opened(t, place).RestoreMount(ctx, s, t.TempDir(), RestoreOptions{Limit: 1 << 30}); !errors.Is(err, context.Canceled) || errors.Is(err, ErrDamaged) {
		t.Errorf("RestoreMount = %v, want that it was cancelled", err)
	}
}

func TestMountsOfSpecs(t *testing.T) {
	tests := []struct {
		export     bool
		attrs      map[string]string
		yes, no    string // ids
		limit      int64
		wantsError string
	}{
		{true, nil, "", "a", defaultMount, ""},
		{false, nil, "a", "", defaultMount, ""},
		{true, map[string]string{"mounts": "true"}, "a", "", defaultMount, ""},
		{false, map[string]string{"mounts": "false"}, "", "a", defaultMount, ""},
		{true, map[string]string{"mounts": "a;/root/.cache"}, "/root/.cache", "b", defaultMount, ""},
		{false, map[string]string{"mounts": "a", "mounts-max-size": "10MB"}, "a", "b", 10 << 20, ""},
		{true, map[string]string{"mounts": ""}, "", "", 0, "want true, false, or ids"},
		{true, map[string]string{"mounts": "a;"}, "", "", 0, "want true, false, or ids"},
		{true, map[string]string{"mounts-max-size": "0"}, "", "", 0, "want a size"},
		{true, map[string]string{"mounts-max-size": "-1"}, "", "", 0, "want a size"},
	}
	for _, tt := range tests {
		s := Spec{Type: TypeLocal, Attrs: map[string]string{"src": "x"}}
		if tt.export {
			s.Attrs = map[string]string{"dest": "x"}
		}
		for k, v := range tt.attrs {
			s.Attrs[k] = v
		}
		m, err := s.Mounts(tt.export)
		if tt.wantsError != "" {
			if cerr := s.Check(tt.export); err == nil || cerr == nil || !strings.Contains(cerr.Error(), tt.wantsError) {
				t.Errorf("Check(%v) = %v, want %q", tt.attrs, cerr, tt.wantsError)
			}
			continue
		}
		if err != nil || s.Check(tt.export) != nil || tt.yes != "" && !m.Wants(tt.yes) || tt.no != "" && m.Wants(tt.no) || m.Limit != tt.limit || m.Any() != (tt.yes != "") {
			t.Errorf("Mounts(%v) of %v = %+v, %v, want %q and not %q", tt.export, tt.attrs, m, err, tt.yes, tt.no)
		}
	}
	err := Spec{Type: TypeInline, Attrs: map[string]string{"mounts": "true"}}.Check(true)
	if err == nil || !strings.Contains(err.Error(), "an image cannot hold cache mounts") {
		t.Errorf("Check of type=inline,mounts=true = %v", err)
	}
}
