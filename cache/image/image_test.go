package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/internal/oci"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func checked(t *testing.T) *Store {
	t.Helper()
	s := open(t)
	t.Cleanup(func() {
		for _, err := range s.Check(context.Background()) {
			t.Error(err)
		}
	})
	return s
}

// putImage stores an image with one absent layer that differs by word.
func putImage(t *testing.T, s *Store, word string, p oci.Platform) oci.Descriptor {
	t.Helper()
	d, err := makeImage(s, word, p)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func makeImage(s *Store, word string, p oci.Platform) (oci.Descriptor, error) {
	diff := digest.FromString("layer " + word)
	img := oci.Image{}
	img.Platform = p
	img.Config.Cmd = []string{word}
	img.RootFS = specs.RootFS{Type: "layers", DiffIDs: []oci.Digest{diff}}
	data, err := json.Marshal(img)
	if err != nil {
		return oci.Descriptor{}, err
	}
	config, err := s.Put(specs.MediaTypeImageConfig, data)
	if err != nil {
		return oci.Descriptor{}, err
	}
	m := oci.Manifest{MediaType: specs.MediaTypeImageManifest, Config: config, Layers: []oci.Descriptor{
		{MediaType: specs.MediaTypeImageLayer, Digest: diff, Size: int64(len("layer " + word))},
	}}
	m.SchemaVersion = 2
	if data, err = json.Marshal(m); err != nil {
		return oci.Descriptor{}, err
	}
	return s.Put(specs.MediaTypeImageManifest, data)
}

func putIndex(t *testing.T, s *Store, manifests ...oci.Descriptor) oci.Descriptor {
	t.Helper()
	idx := oci.Index{MediaType: specs.MediaTypeImageIndex, Manifests: manifests}
	idx.SchemaVersion = 2
	data, err := json.Marshal(idx)
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Put(specs.MediaTypeImageIndex, data)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func ref(t *testing.T, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var amd64 = oci.Platform{OS: "linux", Architecture: "amd64"}

func TestBlob(t *testing.T) {
	s := checked(t)
	want := oci.Descriptor{Digest: digest.FromString("hello"), Size: 5}
	tests := []struct {
		name, bytes string
		desc        oci.Descriptor
		err         string
	}{
		{"whole", "hello", want, ""},
		{"again", "hello", want, ""},
		{"size unknown", "hello", oci.Descriptor{Digest: want.Digest}, ""},
		{"other bytes", "hallo", want, "the bytes have digest sha256:"},
		{"short", "hell", want, "the bytes have digest sha256:"},
		{"wrong size", "hello", oci.Descriptor{Digest: want.Digest, Size: 6}, "5 bytes instead of 6"},
	}
	for _, tt := range tests {
		w, err := s.Ingest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, tt.bytes)
		err = w.Commit(tt.desc)
		w.Close()
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: Commit = %v, want %q", tt.name, err, tt.err)
		}
	}
	r, err := s.Open(want.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); string(got) != "hello" || err != nil {
		t.Errorf("Open: read %q, %v, want hello", got, err)
	}
	if left, _ := os.ReadDir(s.draftDir()); len(left) != 0 {
		t.Errorf("%d temporary files left", len(left))
	}
}

func TestIngestStops(t *testing.T) {
	s := checked(t)
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.Ingest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cancel()
	if _, err := w.Write([]byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Write after cancel = %v, want %v", err, context.Canceled)
	}
}

func TestBadDigests(t *testing.T) {
	s := checked(t)
	for _, d := range []oci.Digest{"", "sha256:../../etc/passwd", "sha256:ab", "md5:d41d8cd98f00b204e9800998ecf8427e", "x"} {
		if s.Has(d) {
			t.Errorf("Has(%q) = true", d)
		}
		if _, err := s.Open(d); err == nil {
			t.Errorf("Open(%q) succeeded", d)
		}
		if _, err := s.Manifest(d); err == nil {
			t.Errorf("Manifest(%q) succeeded", d)
		}
	}
}

func TestDamaged(t *testing.T) {
	s := open(t)
	d := putImage(t, s, "a", amd64)
	if err := s.Set(ref(t, "a"), d); err != nil {
		t.Fatal(err)
	}
	p, _ := s.path(d.Digest)
	good, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	for name, bytes := range map[string]string{
		"flipped": "x" + string(good[1:]), "short": string(good[:20]), "empty": "", "long": string(good) + "\n",
	} {
		if err := os.WriteFile(p, []byte(bytes), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := s.Manifest(d.Digest)
		if !errors.Is(err, ErrDamaged) || !strings.Contains(fmt.Sprint(err), d.Digest.String()) {
			t.Errorf("%s: Manifest = %v, want %v with the digest", name, err, ErrDamaged)
		}
		if len(s.Check(t.Context())) == 0 {
			t.Errorf("%s: Check found nothing", name)
		}
	}
	os.Remove(p)
	if _, err := s.Manifest(d.Digest); !errors.Is(err, ErrNotFound) {
		t.Errorf("Manifest of a missing blob = %v, want %v", err, ErrNotFound)
	}
	putImage(t, s, "a", amd64)
	if bad := s.Check(t.Context()); len(bad) != 0 {
		t.Errorf("after putting it again: %v", bad)
	}
}

func TestNames(t *testing.T) {
	s := checked(t)
	a, b := putImage(t, s, "a", amd64), putImage(t, s, "b", amd64)
	set := func(name string, d oci.Descriptor) {
		t.Helper()
		if err := s.Set(ref(t, name), d); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Add(a); err != nil {
		t.Fatal(err)
	}
	set("x", a)
	set("localhost:5000/y:1", a)
	set("x", b)
	set("z:t@"+b.Digest.String(), b)
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range list {
		got = append(got, n.Ref.String()+" "+n.Desc.Digest.Encoded()[:6])
	}
	want := []string{
		"localhost:5000/y:1 " + a.Digest.Encoded()[:6],
		"docker.io/library/x:latest " + b.Digest.Encoded()[:6],
		"docker.io/library/z@" + b.Digest.String() + " " + b.Digest.Encoded()[:6],
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("List = %q, want %q", got, want)
	}

	aID, _ := s.ID(a)
	bID, _ := s.ID(b)
	lookups := []struct {
		name string
		want oci.Digest // empty: not found
	}{
		{"x", bID}, {"docker.io/library/x:latest", bID}, {"x@" + b.Digest.String(), bID},
		{"x@" + a.Digest.String(), ""}, {"localhost:5000/y:1", aID}, {"localhost:5000/y", ""},
		{aID.String(), aID}, {aID.Encoded(), aID}, {aID.Encoded()[:12], aID}, {"sha256:" + aID.Encoded()[:7], aID},
		{b.Digest.String(), bID}, {"nothing", ""}, {strings.Repeat("0", 64), ""}, {"0000000", ""},
	}
	for _, tt := range lookups {
		f, err := s.Lookup(tt.name)
		if f.ID != tt.want || (tt.want == "") != errors.Is(err, ErrNotFound) {
			t.Errorf("Lookup(%q) = %v, %v, want %q", tt.name, f.ID, err, tt.want)
		}
	}
	if err := s.Delete(ref(t, "x")); err != nil {
		t.Error(err)
	}
	if err := s.Delete(ref(t, "x")); !errors.Is(err, ErrNotFound) {
		t.Errorf("Delete again = %v, want %v", err, ErrNotFound)
	}
	if err := s.Set(ref(t, "q"), oci.Descriptor{Digest: digest.FromString("absent")}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Set to an absent manifest = %v, want %v", err, ErrNotFound)
	}
}

func TestSelect(t *testing.T) {
	s := checked(t)
	v7 := oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	v8 := oci.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	var in []oci.Descriptor
	for _, p := range []oci.Platform{v7, amd64, v8} {
		d := putImage(t, s, p.Architecture+p.Variant, p)
		d.Platform = &p
		in = append(in, d)
	}
	absent := oci.Platform{OS: "linux", Architecture: "s390x"}
	in = append(in, oci.Descriptor{MediaType: specs.MediaTypeImageManifest, Digest: digest.FromString("s390x"), Platform: &absent})
	idx := putIndex(t, s, in...)
	tests := []struct {
		desc oci.Descriptor
		p    oci.Platform
		want oci.Digest
	}{
		{idx, amd64, in[1].Digest},
		{idx, oci.Platform{OS: "linux", Architecture: "arm64"}, in[2].Digest},
		{idx, oci.Platform{OS: "linux", Architecture: "arm"}, in[0].Digest},
		{idx, oci.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}, ""},
		{idx, absent, ""},
		{in[1], amd64, in[1].Digest},
		{oci.Descriptor{MediaType: in[1].MediaType, Digest: in[1].Digest}, v8, ""},
	}
	for _, tt := range tests {
		got, err := s.Select(tt.desc, tt.p)
		if got.Digest != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("Select(%s, %v) = %v, %v, want %q", tt.desc.MediaType, tt.p, got.Digest, err, tt.want)
		}
	}
}

func TestRebuild(t *testing.T) {
	for name, bytes := range map[string]string{"lost": "", "cut": `{"schemaVersion":2,"mani`, "other": `[]`, "old": `{}`} {
		s := checked(t)
		a, b := putImage(t, s, "a", amd64), putImage(t, s, "b", amd64)
		b.Platform = &amd64
		idx := putIndex(t, s, b)
		if _, err := s.Put("text/plain", []byte("{ a layer")); err != nil {
			t.Fatal(err)
		}
		os.Remove(s.indexPath())
		if bytes != "" {
			if err := os.WriteFile(s.indexPath(), []byte(bytes), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		list, err := s.List()
		got := map[oci.Digest]bool{}
		for _, n := range list {
			got[n.Desc.Digest] = !n.HasName()
		}
		if err != nil || len(list) != 2 || !got[a.Digest] || !got[idx.Digest] {
			t.Errorf("%s: List = %v, %v, want the manifest and the index", name, list, err)
		}
	}
}

func TestPrune(t *testing.T) {
	s := checked(t)
	clock := time.Now()
	s.now = func() time.Time { return clock }
	named, old, kept := putImage(t, s, "named", amd64), putImage(t, s, "old", amd64), putImage(t, s, "kept", amd64)
	if err := s.Set(ref(t, "x"), putIndex(t, s, named)); err != nil {
		t.Fatal(err)
	}
	keptID, _ := s.ID(kept)
	clock = clock.Add(2 * time.Hour)
	fresh := putImage(t, s, "fresh", amd64)
	asked := putImage(t, s, "old", amd64) // found there: renewed
	for _, d := range []oci.Digest{fresh.Digest} {
		// Files carry the real clock's time: make it the test's.
		p, _ := s.path(d)
		os.Chtimes(p, clock, clock)
	}
	got, err := s.Prune(t.Context(), time.Hour, func(d oci.Digest) bool { return d == kept.Digest || d == keptID })
	if err != nil {
		t.Fatal(err)
	}
	for d, want := range map[oci.Digest]bool{
		named.Digest: true, kept.Digest: true, keptID: true, fresh.Digest: true, asked.Digest: true, old.Digest: true,
	} {
		if s.Has(d) != want {
			t.Errorf("after Prune, Has(%s) = %v, want %v", d, !want, want)
		}
	}
	clock = clock.Add(2 * time.Hour)
	garbage, err := s.Garbage(t.Context(), time.Hour)
	if err != nil || !s.Has(fresh.Digest) {
		t.Errorf("Garbage = %v, and leaves %s: %v, want no error and true", err, fresh.Digest, s.Has(fresh.Digest))
	}
	more, err := s.Prune(t.Context(), time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	if garbage != more {
		t.Errorf("Garbage = %+v, and Prune removes %+v, want the same", garbage, more)
	}
	if s.Has(fresh.Digest) || s.Has(old.Digest) || s.Has(kept.Digest) || !s.Has(named.Digest) {
		t.Error("the second Prune left garbage or took the named image")
	}
	if n := got.Blobs + more.Blobs; n != 6 || more.Bytes == 0 {
		t.Errorf("Prune removed %d blobs, %d bytes, want 6 and more than 0", n, more.Bytes)
	}
}

// An entry without a name goes with its blobs when it is old, and one with a name
// never does.
func TestPruneForgotten(t *testing.T) {
	s := checked(t)
	clock := time.Now()
	s.now = func() time.Time { return clock }
	named, nameless := putImage(t, s, "named", amd64), putImage(t, s, "nameless", amd64)
	if err := errors.Join(s.Set(ref(t, "x"), named), s.Add(nameless)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		after time.Duration
		left  int
	}{{time.Minute, 2}, {time.Hour, 1}} {
		clock = clock.Add(tt.after)
		want, err := s.Garbage(t.Context(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Prune(t.Context(), time.Hour, nil)
		if err != nil || got != want || (got.Blobs > 0) != (tt.left == 1) {
			t.Errorf("Prune after %s = %+v, %v, want %+v", tt.after, got, err, want)
		}
		list, err := s.List()
		if err != nil || len(list) != tt.left || s.Has(nameless.Digest) != (tt.left == 2) || !s.Has(named.Digest) {
			t.Errorf("Prune after %s leaves %v, %v, want %d entries", tt.after, list, err, tt.left)
		}
	}
}

func TestRecords(t *testing.T) {
	s := checked(t)
	diff, blob := digest.FromString("diff"), oci.Descriptor{MediaType: specs.MediaTypeImageLayerGzip, Digest: digest.FromString("blob"), Size: 7}
	if err := s.SetCompressed(diff, "gzip 6", blob); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Compressed(diff, "gzip 6"); !ok || got.Digest != blob.Digest || got.Size != 7 {
		t.Errorf("Compressed = %v, %v, want %v", got, ok, blob)
	}
	if got, ok := s.Compressed(diff, "gzip 9"); ok {
		t.Errorf("Compressed of another recipe = %v", got)
	}
	if err := os.WriteFile(s.compressedPath(diff, "gzip 6"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Compressed(diff, "gzip 6"); ok {
		t.Errorf("Compressed of a damaged record = %v", got)
	}
	for _, r := range []string{"docker.io/library/a", "docker.io/library/b", "docker.io/library/a"} {
		if err := s.AddOrigin(blob.Digest, r); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Origins(blob.Digest); len(got) != 2 || got[0] != "docker.io/library/a" {
		t.Errorf("Origins = %q, want a, b", got)
	}
}

// Whatever is damaged, Mend drops, and what is left is whole.
func TestMend(t *testing.T) {
	tests := []struct {
		name  string
		harm  func(s *Store, d oci.Descriptor) error
		named bool // the image keeps its name
	}{
		{"a manifest flipped", func(s *Store, d oci.Descriptor) error { return flip(filepath.Join(s.blobDir(), d.Digest.Encoded())) }, false},
		{"a manifest gone", func(s *Store, d oci.Descriptor) error {
			return os.Remove(filepath.Join(s.blobDir(), d.Digest.Encoded()))
		}, false},
		{"the index flipped", func(s *Store, _ oci.Descriptor) error { return flip(s.indexPath()) }, true},
		{"the index gone", func(s *Store, _ oci.Descriptor) error { return os.Remove(s.indexPath()) }, true},
		{"the index and its copy", func(s *Store, _ oci.Descriptor) error {
			return errors.Join(flip(s.indexPath()), flip(s.copyPath()))
		}, false},
		{"the layout file flipped", func(s *Store, _ oci.Descriptor) error { return flip(s.layoutPath()) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := checked(t)
			bad, good := putImage(t, s, "bad", amd64), putImage(t, s, "good", amd64)
			for name, d := range map[string]oci.Descriptor{"bad": bad, "good": good} {
				if err := s.Set(ref(t, name), d); err != nil {
					t.Fatal(err)
				}
			}
			if err := tt.harm(s, bad); err != nil {
				t.Fatal(err)
			}
			before := listed(t, s.Dir())
			if got := s.Check(t.Context()); len(got) == 0 {
				t.Error("Check finds nothing")
			}
			if after := listed(t, s.Dir()); !slices.Equal(after, before) {
				t.Errorf("Check left %q of %q", after, before)
			}
			if got := s.Mend(t.Context()); len(got) == 0 || !strings.HasSuffix(got[0].Error(), "dropped") {
				t.Errorf("Mend = %v, want it to say what it dropped", got)
			}
			if got := s.Check(t.Context()); len(got) > 0 {
				t.Errorf("Check after Mend = %v", got)
			}
			if _, err := s.Get(ref(t, "bad")); (err == nil) != tt.named {
				t.Errorf("Get = %v, want the image to be there: %v", err, tt.named)
			}
			if _, err := s.Manifest(good.Digest); err != nil {
				t.Errorf("Manifest of the other image = %v", err)
			}
		})
	}
}

// listed is all files below dir.
func listed(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		list = append(list, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// flip harms the first byte of a file.
func flip(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[0] ^= 4
	return os.WriteFile(path, b, 0o644)
}

// Names outlast a damaged index, but not their own removal.
func TestIndexCopy(t *testing.T) {
	s := checked(t)
	d := putImage(t, s, "a", amd64)
	for _, name := range []string{"a", "b"} {
		if err := s.Set(ref(t, name), d); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(ref(t, "a")); err != nil {
		t.Fatal(err)
	}
	if err := flip(s.indexPath()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ref(t, "b")); err != nil {
		t.Errorf("Get after the index was damaged = %v", err)
	}
	if _, err := s.Get(ref(t, "a")); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get of a name that was removed = %v, want %v", err, ErrNotFound)
	}
}

// The images of private registries are not for all users of a machine.
func TestPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "images")
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the store's directory has mode %v (%v), want 700", st.Mode().Perm(), err)
	}
}
