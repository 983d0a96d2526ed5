package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// read is all files below dir by name.
func read(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir+"/")] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestTextTree(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	for _, dir := range []string{one, two} {
		if err := textTree(dir, 2, 3, 7); err != nil {
			t.Fatal(err)
		}
	}
	a, b := read(t, one), read(t, two)
	if len(a) != 6 {
		t.Errorf("textTree(2, 3) wrote %d files, want 6", len(a))
	}
	for name, text := range a {
		if len(text) < 512 || len(text) > 10100 || b[name] != text {
			t.Errorf("%s has %d bytes, want 512 to 10,000, and the same ones each time: %v", name, len(text), b[name] == text)
		}
	}
}

func TestStamp(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"Dockerfile": "FROM scratch\n", "sub/long": strings.Repeat("x", 20), "short": "x"} {
		if err := write(dir, name, text); err != nil {
			t.Fatal(err)
		}
	}
	const serial = "0123456789abcdef"
	if err := stamp(dir, serial); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"Dockerfile": "FROM scratch\n", "sub/long": serial + "xxxx", "short": serial}
	for name, text := range read(t, dir) {
		if text != want[name] {
			t.Errorf("after stamp %s is %q, want %q", name, text, want[name])
		}
	}
}

func TestAppendToOne(t *testing.T) {
	dir := t.TempDir()
	for d := range 100 {
		for f := range 100 {
			path := filepath.Join(dir, "src", "d"+digits3(d), "f"+digits3(f)+".txt")
			if f == 0 {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := appendToOne(dir, "new"); err != nil {
		t.Fatal(err)
	}
	changed := 0
	for _, text := range read(t, dir) {
		if text == "new\n" {
			changed++
		} else if text != "" {
			t.Errorf("a file became %q", text)
		}
	}
	if changed != 1 {
		t.Errorf("appendToOne changed %d files, want 1", changed)
	}
}

func digits3(n int) string {
	return string([]byte{byte('0' + n/100), byte('0' + n/10%10), byte('0' + n%10)})
}

func TestEdit(t *testing.T) {
	for _, tt := range []struct{ app, file, before, want string }{
		{"apps/go", "main.go", `version = "`, `const version = "s1"`},
		{"apps/node", "server.js", "send('", "r.send('s1')"},
	} {
		dir := t.TempDir()
		if err := copyApp(tt.app, dir); err != nil {
			t.Fatal(err)
		}
		if tt.app == "apps/node" {
			if err := write(dir, "server.js", nodeServer); err != nil {
				t.Fatal(err)
			}
		}
		for _, serial := range []string{"s0", "s1"} { // again, over an earlier edit
			if err := edit(tt.file, tt.before)(dir, serial); err != nil {
				t.Fatal(err)
			}
		}
		if text := read(t, dir)[tt.file]; strings.Count(text, tt.want) != 1 {
			t.Errorf("%s after two edits has no %q:\n%s", tt.file, tt.want, text)
		}
		if err := edit(tt.file, "no such thing")(dir, "s"); err == nil {
			t.Errorf("edit of what %s does not have succeeded", tt.file)
		}
	}
}

func TestLockedPackages(t *testing.T) {
	files, err := lockedPackages()
	if err != nil {
		t.Fatal(err)
	}
	file, ok := files["lodash/-/lodash-4.17.21.tgz"]
	if parts := strings.Split(file, "/"); !ok || len(parts) != 4 || len(parts[1]) != 2 || len(parts[2]) != 2 || len(parts[3]) != 124 {
		t.Errorf("lockedPackages has lodash in %q, want a SHA-512 in three parts", file)
	}
}

func TestUnpack(t *testing.T) {
	var tar bytes.Buffer
	if err := smallLayer(&tar, 3); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	whole := tar.Bytes()
	if err := untar(root, bytes.NewReader(whole[:len(whole)-512])); err == nil {
		t.Error("untar of half a file succeeded")
	}
	if err := os.RemoveAll(filepath.Join(dir, "layers")); err != nil {
		t.Fatal(err)
	}
	if err := untar(root, bytes.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	files := read(t, dir)
	if len(files) != 50 || len(files["layers/3/49"]) != 20<<10 {
		t.Errorf("untar wrote %d files, the last one of %d bytes, want 50 of 20480", len(files), len(files["layers/3/49"]))
	}
}
