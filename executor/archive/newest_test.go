package archive

import (
	"archive/tar"
	"bytes"
	"testing"
	"time"
)

func TestNewest(t *testing.T) {
	for _, tt := range []struct {
		name    string
		members []tar.Header
		want    int64 // -1: none
	}{
		{"files", []tar.Header{{Name: "a", ModTime: time.Unix(5, 0)}, {Name: "b", ModTime: time.Unix(9, 0)}, {Name: "c", ModTime: time.Unix(7, 0)}}, 9},
		{"directories do not count", []tar.Header{{Name: "d/", Typeflag: tar.TypeDir, ModTime: time.Unix(9, 0)}, {Name: "d/a", ModTime: time.Unix(5, 0)}}, 5},
		{"no file", []tar.Header{{Name: "d/", Typeflag: tar.TypeDir, ModTime: time.Unix(9, 0)}}, -1},
	} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for _, h := range tt.members {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		a, err := Open(&buf)
		if err != nil {
			t.Fatal(err)
		}
		got, err := a.Newest(t.Context())
		if err != nil || (got == nil) != (tt.want < 0) || got != nil && got.Unix() != tt.want {
			t.Errorf("Newest(%s) = %v, %v, want the second %d", tt.name, got, err, tt.want)
		}
		a.Close()
	}
}
