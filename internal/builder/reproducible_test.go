package builder

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/exporter"
	"github.com/861fb494/build/internal/oci"
)

func TestBounded(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0).UTC() }
	diffID, content := digest.FromString("tar"), digest.Digest("blake3:00")
	blob := &oci.Descriptor{Digest: digest.FromString("blob")}
	built := oci.Layer{ID: "l-1", Content: content, Created: at(200)}
	pulled := oci.Layer{ID: "sha256-1", Content: diffID, DiffID: diffID, Blob: blob}
	local := oci.Layer{ID: "l-2", Content: diffID, DiffID: diffID, Created: at(50)}
	imported := func(epoch time.Time) oci.Layer {
		return oci.Layer{ID: "sha256-2", Content: content, DiffID: diffID, Blob: blob, Imported: true, Epoch: epoch}
	}
	ofBase := imported(at(5))
	ofBase.Content = diffID
	for _, tt := range []struct {
		name    string
		layer   oci.Layer
		rewrite bool      // it is here to be written anew
		epoch   time.Time // wanted
		id      string
		blob    bool
		refused bool
	}{
		{name: "built here", layer: built, epoch: at(100), id: "l-1"},
		{name: "of a pulled image", layer: pulled, id: "sha256-1", blob: true},
		{name: "of a local image", layer: local, id: "l-2"},
		{name: "imported with the bound", layer: imported(at(100)), epoch: at(100), id: "sha256-2", blob: true},
		{name: "imported without", layer: imported(time.Time{}), id: "sha256-2", blob: true},
		{name: "imported without, to be written anew", layer: imported(time.Time{}), rewrite: true, epoch: at(100), id: "sha256-2-upon", blob: false},
		{name: "imported with a later one, to be written anew", layer: imported(at(101)), rewrite: true, epoch: at(100), id: "sha256-2-upon", blob: false},
		{name: "imported with an earlier one", layer: imported(at(99)), epoch: at(99), id: "sha256-2", blob: true, refused: true},
		{name: "imported, of a base image", layer: ofBase, epoch: at(5), id: "sha256-2", blob: true},
	} {
		j := &job{Request: Request{Reproducible: true}}
		if tt.rewrite {
			j.rewritten = map[string]string{rewriteKey(tt.layer, at(100)): "sha256-2-upon"}
		}
		layers := []oci.Layer{tt.layer}
		got := j.bounded(layers, at(100))[0]
		if !got.Epoch.Equal(tt.epoch) || got.ID != tt.id || (got.Blob != nil) != tt.blob || got.Content != tt.layer.Content {
			t.Errorf("%s: bounded = %+v, want the epoch %v, the ID %s, and a blob: %v", tt.name, got, tt.epoch, tt.id, tt.blob)
		}
		if got.Created.After(at(100)) {
			t.Errorf("%s: bounded was created %v, want at most %v", tt.name, got.Created, at(100))
		}
		if !layers[0].Epoch.Equal(tt.layer.Epoch) || !layers[0].Created.Equal(tt.layer.Created) {
			t.Errorf("%s: bounded changed what it was given to %+v", tt.name, layers[0])
		}
		if err := j.tooOld(layers, at(100)); (err != nil) != tt.refused {
			t.Errorf("%s: tooOld = %v, want refused: %v", tt.name, err, tt.refused)
		}
		if same := j.bounded(layers, time.Time{})[0]; !same.Epoch.Equal(tt.layer.Epoch) || same.ID != tt.layer.ID {
			t.Errorf("%s: bounded without an epoch = %+v, want it as it was", tt.name, same)
		}
	}
}

// Which outputs get bounded images, and when old times matter.
func TestBounds(t *testing.T) {
	old := []oci.Layer{{Imported: true, Content: "blake3:00", DiffID: "sha256:00", Epoch: time.Unix(1, 0)}}
	rewrite := exporter.Output{Type: exporter.TypeImage, Attrs: map[string]string{"rewrite-timestamp": "true"}}
	plain := exporter.Output{Type: exporter.TypeImage}
	for _, tt := range []struct {
		name    string
		r       Request
		of      exporter.Output
		want    bool
		refused bool
	}{
		{"an output as it is", Request{Outputs: []exporter.Output{plain}}, plain, false, false},
		{"with the attribute", Request{Outputs: []exporter.Output{plain, rewrite}}, rewrite, true, true},
		{"beside one that has it", Request{Outputs: []exporter.Output{plain, rewrite}}, plain, false, true},
		{"with --reproducible", Request{Reproducible: true}, plain, true, true},
	} {
		j := &job{Request: tt.r}
		if got := j.bounds(tt.of); got != tt.want {
			t.Errorf("%s: bounds = %v, want %v", tt.name, got, tt.want)
		}
		if err := j.tooOld(old, time.Unix(2, 0)); (err != nil) != tt.refused {
			t.Errorf("%s: tooOld = %v, want refused: %v", tt.name, err, tt.refused)
		}
	}
}
