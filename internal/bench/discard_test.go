package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// What has many files is put aside, and its name is free; the rest is gone.
func TestDiscard(t *testing.T) {
	for _, tt := range []struct {
		name         string
		files, aside int
	}{{"few", 3, 0}, {"many", maxDeleted + 1, 1}, {"none", -1, 0}} {
		b := &bench{dir: t.TempDir()}
		aside := filepath.Join(b.dir, "discarded")
		if err := os.Mkdir(aside, 0o755); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(b.dir, "state")
		for i := range tt.files {
			if err := write(dir, fmt.Sprintf("d/%d", i), ""); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the second time there is nothing
			if err := b.discard(dir); err != nil {
				t.Fatalf("%s: discard = %v", tt.name, err)
			}
		}
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: after discard, Lstat = %v", tt.name, err)
		}
		if left, err := os.ReadDir(aside); err != nil || len(left) != tt.aside {
			t.Errorf("%s: %d put aside, %v, want %d", tt.name, len(left), err, tt.aside)
		}
	}
}
