package remote

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
)

// TestExpiry has records that are good for some time, and tars with a last time.
func TestExpiry(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	plain, changes := built(t, "a", "1")
	bounded, _ := built(t, "b", "2")
	bounded.Epoch = time.Unix(0, 0)
	dir := t.TempDir()
	p := source(t, dir)
	_, err := Export(t.Context(), p, []Record{
		{Keys: []oci.Digest{key("for ever")}, Layers: []oci.Layer{plain}},
		{Keys: []oci.Digest{key("brief"), key("by content")}, Layers: []oci.Layer{plain, bounded}, Expires: now},
	}, Options{
		Pool: compress.NewPool(1), Temp: t.TempDir(),
		Entries: func(oci.Layer) ([]tree.Change, bool) { return nil, false },
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		key  string
		at   time.Time
		want bool
	}{
		{"for ever", now.AddDate(100, 0, 0), true},
		{"brief", now, true},
		{"brief", now.Add(time.Second), false},
		{"by content", now.Add(-time.Hour), true},
		{"by content", now.Add(time.Hour), false},
	} {
		c.now = func() time.Time { return tt.at }
		r, ok := c.Lookup(key(tt.key))
		if ok != tt.want {
			t.Errorf("Lookup(%s) at %s = %v, want %v", tt.key, tt.at, ok, tt.want)
		}
		if want := tt.key != "for ever"; ok && (want != r.Expires.Equal(now) || want == r.Expires.IsZero()) {
			t.Errorf("Lookup(%s) is good until %v, want %v", tt.key, r.Expires, now)
		}
	}
	c.now = func() time.Time { return now }
	r, _ := c.Lookup(key("brief"))
	if got := r.Layers[0].Epoch; !got.IsZero() {
		t.Errorf("a tar without an epoch came back with %v", got)
	}
	if got := r.Layers[1].Epoch; !got.Equal(bounded.Epoch) {
		t.Errorf("a tar with the epoch %v came back with %v", bounded.Epoch, got)
	}
	packed, err := packEntries(changes, bounded.Epoch)
	if err == nil {
		packed, err = unpackEntries(packed)
	}
	if err != nil {
		t.Fatal(err)
	}
	list, err := layer.Collect(layer.ReadEntries(bytes.NewReader(packed)))
	if err != nil || len(list) != 1 || !list[0].ModTime.Equal(bounded.Epoch) {
		t.Errorf("entries of a tar with the epoch %v = %+v, %v, want its time", bounded.Epoch, list, err)
	}
}

// Of several records under a key the one counts that is good for longest.
func TestExpiryOfSeveral(t *testing.T) {
	early, late := time.Unix(100, 0).UTC(), time.Unix(200, 0).UTC()
	for _, tt := range []struct {
		name  string
		parts [][]time.Time // the records' expiry, of each manifest
		want  time.Time
	}{
		{"later", [][]time.Time{{early, late}}, late},
		{"earlier", [][]time.Time{{late, early}}, late},
		{"in another manifest", [][]time.Time{{early}, {late}}, late},
		{"never", [][]time.Time{{late, {}, early}}, time.Time{}},
		{"never, in another manifest", [][]time.Time{{late}, {early, {}}}, time.Time{}},
	} {
		c := &Cache{now: func() time.Time { return time.Unix(150, 0) }, records: map[oci.Digest]found{}, entries: map[oci.Digest]*entriesOf{}}
		for _, part := range tt.parts {
			x := &index{Version: version}
			for _, at := range part {
				x.Records = append(x.Records, indexRecord{Keys: []oci.Digest{key("k")}, Expires: at})
			}
			if err := c.add(x, nil, "here"); err != nil {
				t.Fatal(err)
			}
		}
		if r, ok := c.Lookup(key("k")); !ok || !r.Expires.Equal(tt.want) {
			t.Errorf("%s: Lookup = %v, good until %v, want %v", tt.name, ok, r.Expires, tt.want)
		}
	}
}

// What has no expiry and no epoch says nothing of them.
func TestIndexWithout(t *testing.T) {
	data, err := encode(index{Layers: []indexLayer{{}}, Records: []indexRecord{{}}})
	if err != nil {
		t.Fatal(err)
	}
	var x struct{ Layers, Records []map[string]any }
	if err := json.Unmarshal(data, &x); err != nil {
		t.Fatal(err)
	}
	if _, ok := x.Layers[0]["epoch"]; ok {
		t.Errorf("a layer without an epoch is %s", data)
	}
	if _, ok := x.Records[0]["expires"]; ok {
		t.Errorf("a record without an expiry is %s", data)
	}
}
