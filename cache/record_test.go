package cache

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/internal/oci"
)

func key(c string) oci.Digest { return oci.Digest("blake3:" + strings.Repeat(c, 64)) }

func put(t testing.TB, s *Store, r Record) {
	t.Helper()
	if err := s.PutStep(r); err != nil {
		t.Fatal(err)
	}
}

func TestStep(t *testing.T) {
	s := open(t, t.TempDir())
	l := commit(t, s, nil, files{{"/f", "1"}})
	want := Record{
		Key: key("a"), Place: "p", Parts: []Part{{Name: "operation", Value: "x"}}, Result: json.RawMessage(`{"n":1}`),
		Layers: []oci.Layer{l},
	}
	put(t, s, want)
	for name, s := range map[string]*Store{"same process": s, "another": open(t, s.Dir())} {
		got, err := s.Step(want.Key)
		if err != nil {
			t.Fatal(err)
		}
		if got.Key != want.Key || string(got.Result) != `{"n":1}` || len(got.Layers) != 1 || got.Layers[0].Content != l.Content || got.Created.IsZero() {
			t.Errorf("%s: Step = %+v, want %+v", name, got, want)
		}
		last, err := s.Last("p")
		if err != nil || last.Key != want.Key || last.Parts[0] != want.Parts[0] {
			t.Errorf("%s: Last = %+v, %v", name, last, err)
		}
	}
	put(t, s, Record{Key: key("b"), Place: "p", Layers: []oci.Layer{}})
	if last, err := s.Last("p"); err != nil || last.Key != key("b") {
		t.Errorf("Last = %+v, %v, want the later record", last, err)
	}
	for _, k := range []oci.Digest{key("c"), oci.Digest("sha256:" + strings.Repeat("a", 64))} {
		if _, err := s.Step(k); err == nil {
			t.Errorf("Step(%s) is there", k)
		}
	}
	if _, err := s.Last("q"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Last of no place = %v, want fs.ErrNotExist", err)
	}
}

// Each byte of a record counts: what is not what was written is a miss.
func TestStepDamaged(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, Record{Key: key("a"), Result: json.RawMessage(`{}`), Layers: []oci.Layer{}})
	put(t, s, Record{Key: key("b"), Result: json.RawMessage(`{}`), Layers: []oci.Layer{}})
	path := s.stepPath(key("a"))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(s.stepPath(key("b")))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "too short"},
		{"cut", good[:len(good)-1], "checksum differs"},
		{"half", good[:len(good)/2], "checksum differs"},
		{"of another step", other, "another step, " + string(key("b"))},
		{"zeros", make([]byte, len(good)), "checksum differs"},
		{"more", append(bytes.Clone(good), '\n'), "checksum differs"},
		{"no JSON", sealRecord([]byte("hello")), "invalid character"},
		{"other JSON", sealRecord([]byte(`{"key":[]}`)), "cannot unmarshal"},
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		tests = append(tests, struct {
			name string
			data []byte
			want string
		}{"a flipped bit", bad, "is damaged"})
	}
	for _, tt := range tests {
		if err := os.WriteFile(path, tt.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if tt.name != "a flipped bit" && len(s.Check(t.Context())) != 1 {
			t.Errorf("%s: Check = %v, want one problem", tt.name, s.Check(t.Context()))
		}
		r, err := s.Step(key("a"))
		var damaged *DamagedError
		if !errors.As(err, &damaged) || !strings.Contains(err.Error(), tt.want) {
			t.Fatalf("%s: Step = %v, %v, want a *DamagedError with %q", tt.name, r, err, tt.want)
		}
		if exists(path) {
			t.Errorf("%s: the record is still there", tt.name)
		}
		if _, err := s.Step(key("a")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: then Step = %v, want fs.ErrNotExist", tt.name, err)
		}
	}
}

func TestStepWhoseLayersAreGone(t *testing.T) {
	s := open(t, t.TempDir())
	l := commit(t, s, nil, files{{"/f", "1"}})
	pulled := oci.Layer{ID: pulledID, Blob: &oci.Descriptor{}, Origin: "x"}
	put(t, s, Record{Key: key("a"), Layers: []oci.Layer{l, pulled}})
	if _, err := s.Step(key("a")); err != nil {
		t.Errorf("Step with a layer that can be pulled: %v", err)
	}
	if err := s.RemoveLayer(t.Context(), l.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Step(key("a")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), l.ID) {
		t.Errorf("Step without its layer = %v, want an fs.ErrNotExist that names it", err)
	}
	if err := s.RemoveLayer(t.Context(), l.ID); err != nil {
		t.Errorf("RemoveLayer again: %v", err)
	}
}

// What another process removes is gone for this one too.
func TestLayerRemovedElsewhere(t *testing.T) {
	s := open(t, t.TempDir())
	other := open(t, s.Dir())
	l := commit(t, s, nil, files{{"/f", "1"}})
	if err := other.RemoveLayer(t.Context(), l.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Layer(l.ID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Layer = %v, want fs.ErrNotExist", err)
	}
}

func TestStepExpires(t *testing.T) {
	s := open(t, t.TempDir())
	at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	s.now = func() time.Time { return at }
	put(t, s, Record{Key: key("a"), Layers: []oci.Layer{}, Expires: at.Add(time.Hour)})
	tests := []struct {
		after time.Duration
		want  error
	}{
		{0, nil},
		{time.Hour, nil},
		{time.Hour + 1, ErrExpired},
		{1000 * time.Hour, ErrExpired},
	}
	for _, tt := range tests {
		s.now = func() time.Time { return at.Add(tt.after) }
		_, err := s.Step(key("a"))
		if !errors.Is(err, tt.want) || tt.want != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Step after %v = %v, want %v", tt.after, err, tt.want)
		}
	}
}

func TestWriteFails(t *testing.T) {
	onSmallDisk(t, 256<<10, func(t *testing.T, dir string) {
		s := open(t, dir)
		put(t, s, Record{Key: key("a"), Result: json.RawMessage(`1`), Layers: []oci.Layer{}})
		fill := filepath.Join(dir, "fill")
		full(t, fill)
		big := json.RawMessage(`"` + strings.Repeat("x", 64<<10) + `"`)
		if err := s.PutStep(Record{Key: key("b"), Result: big, Layers: []oci.Layer{}}); err == nil {
			t.Error("PutStep on a full disk succeeds")
		}
		if err := s.PutStep(Record{Key: key("a"), Result: big, Layers: []oci.Layer{}}); err == nil {
			t.Error("PutStep on a full disk succeeds")
		}
		if r, err := s.Step(key("a")); err != nil || string(r.Result) != "1" {
			t.Errorf("the record that was to be replaced: %v, %v", r, err)
		}
		if _, err := s.Step(key("b")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the record that could not be written: %v", err)
		}
		if left := s.tempFiles(); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		os.Remove(fill)
		put(t, s, Record{Key: key("b"), Result: big, Layers: []oci.Layer{}})
	})
}

// full writes file until the disk is full.
func full(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return
		}
	}
}

func TestPin(t *testing.T) {
	s := open(t, t.TempDir())
	ref, err := oci.ParseReference("node:alpine")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Pin(ref); ok {
		t.Error("Pin before PutPin is there")
	}
	want := oci.Descriptor{Digest: "sha256:1", Size: 5, MediaType: "m"}
	if err := s.PutPin(ref, want); err != nil {
		t.Fatal(err)
	}
	if got, ok := open(t, s.Dir()).Pin(ref); !ok || got.Digest != want.Digest || got.Size != 5 {
		t.Errorf("Pin = %+v, %v, want %+v", got, ok, want)
	}
	other, _ := oci.ParseReference("node:latest")
	if err := os.Rename(s.pinPath(ref.String()), s.pinPath(other.String())); err != nil {
		t.Fatal(err)
	}
	if d, ok := s.Pin(other); ok {
		t.Errorf("the pin of another name is taken for %v", d)
	}
	if got := s.Check(t.Context()); len(got) != 1 {
		t.Errorf("Check = %v, want one problem", got)
	}
	os.Remove(s.pinPath(other.String()))
}

func TestResult(t *testing.T) {
	s := open(t, t.TempDir())
	data := []byte(`{"a": "<b>"}` + "\n")
	id, err := s.PutResult(data)
	if err != nil {
		t.Fatal(err)
	}
	hex := id.Encoded()
	// Two more that begin alike.
	for _, name := range []string{"abcd1" + strings.Repeat("0", 59), "abcd2" + strings.Repeat("0", 59)} {
		if err := s.writeRecord(filepath.Join(s.dir, "results", name), result{ID: name, Data: []byte(name)}); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		id, want, err string
	}{
		{string(id), string(data), ""},
		{hex, string(data), ""},
		{hex[:12], string(data), ""},
		{"blake3:" + hex[:4], string(data), ""},
		{"abcd1", "abcd1" + strings.Repeat("0", 59), ""},
		{"abcd", "", "several begin so"},
		{hex[:3], "", "does not exist"}, // too short to be meant
		{"", "", "does not exist"},
		{"ffff0000", "", "does not exist"},
		{"../../format", "", "does not exist"},
		{strings.ToUpper(hex), "", "does not exist"},
		{"super-server", "", "does not exist"},
		{tempPrefix, "", "does not exist"},
	}
	for _, tt := range tests {
		got, err := s.Result(tt.id)
		if string(got) != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("Result(%q) = %q, %v, want %q, %q", tt.id, got, err, tt.want, tt.err)
		}
	}
	path := filepath.Join(s.dir, "results", hex)
	if err := os.Rename(filepath.Join(s.dir, "results", "abcd1"+strings.Repeat("0", 59)), path); err != nil {
		t.Fatal(err)
	}
	var damaged *DamagedError
	if got, err := s.Result(hex); !errors.As(err, &damaged) {
		t.Errorf("Result of another result's file = %q, %v, want a *DamagedError", got, err)
	}
	if exists(path) {
		t.Error("the damaged result is still there")
	}
	// One that was damaged since is written anew.
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutResult(data); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Result(hex); err != nil || string(got) != string(data) {
		t.Errorf("Result of what was put again = %q, %v, want %q", got, err, data)
	}
}
