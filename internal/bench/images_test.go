package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"testing"
)

func TestLayer(t *testing.T) {
	im := &images{dir: t.TempDir(), bodies: map[string]*body{}}
	b, err := im.bodyOf("small", func(w io.Writer) error { return smallLayer(w, 1) })
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, tt := range []struct {
		serial string
		files  int
	}{{"", 50}, {"a", 51}, {"b", 51}} {
		l, err := b.layer(tt.serial)
		if err != nil {
			t.Fatal(err)
		}
		packed, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		defer packed.Close()
		h := sha256.New()
		n, err := io.Copy(h, packed)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != l.digest.Hex || n != must(l.Size()) {
			t.Errorf("layer(%q) has %d bytes of digest %s, says %d of %s", tt.serial, n, got, must(l.Size()), l.digest.Hex)
		}
		plain, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		h.Reset()
		r := io.TeeReader(plain, h)
		files := 0
		for tr := tar.NewReader(r); ; files++ {
			if _, err := tr.Next(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != l.diffID.Hex || files != tt.files {
			t.Errorf("layer(%q) has %d files and diff ID %s, want %d and %s", tt.serial, files, got, tt.files, l.diffID.Hex)
		}
		if seen[l.diffID.Hex] || seen[l.digest.Hex] {
			t.Errorf("layer(%q) is an earlier one", tt.serial)
		}
		seen[l.diffID.Hex], seen[l.digest.Hex] = true, true
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
