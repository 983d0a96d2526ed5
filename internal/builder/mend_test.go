package builder

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/exporter"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
)

// harmed writes something else into the file called name in whatever layers have
// it. With keepTime the file looks as it did.
func harmed(t *testing.T, b *Builder, name string, keepTime bool) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(filepath.Join(b.Store.Dir(), "snapshots", "layers"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != name || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		n++
		err = os.WriteFile(p, []byte(strings.Repeat("x", int(st.Size()))), 0o644)
		if keepTime {
			err = errors.Join(err, os.Chtimes(p, time.Time{}, st.ModTime()))
		}
		return err
	})
	if err != nil || n == 0 {
		t.Fatalf("%d files harmed, %v", n, err)
	}
}

// What a damaged layer is found by depends on what is done with it; whatever that
// is, the build comes to what it would have come to.
func TestDamagedLayerIsMadeAnew(t *testing.T) {
	text := shell + "COPY a /a\nRUN cat /a > /b\nFROM scratch\nCOPY --from=0 /a /b /\n"
	read := strings.Replace(text, "/b\nFROM", "/b\nRUN cat /a /b > /c\nFROM", 1)
	tests := []struct {
		name, file, again string
		silent, tar       bool
	}{
		{"a file that is named again", "b", text, false, false},
		{"a file that is put out", "b", text, true, true},
		{"a file that a step reads", "a", read, false, false},
		{"a program that a step runs", "busybox", read, false, false},
		{"a file that is copied from a stage", "b", text + "COPY --from=0 /b /c\n", false, false},
		{"one that looks as it did", "a", text + "COPY --from=0 /a /c\n", true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := withBusybox(t, contextDir(t, text, "a 1234"))
			request := func() Request {
				r := Request{Context: dir, Seal: true, Reproducible: true, Frontend: dockerfile.Options{Network: llb.NetworkNone}}
				if tt.tar {
					r.Outputs = []exporter.Output{{Type: exporter.TypeTar, Dest: filepath.Join(t.TempDir(), "x.tar")}}
				}
				return r
			}
			root := t.TempDir()
			build(t, openAt(t, root), request())
			if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(tt.again), 0o644); err != nil {
				t.Fatal(err)
			}
			want := build(t, openAt(t, t.TempDir()), request())

			b := openAt(t, root)
			harmed(t, b, tt.file, tt.silent)
			var seen warnings
			r := request()
			r.Sink = &seen
			got := build(t, b, r)
			if got.ID != want.ID {
				t.Errorf("the image is %s, want %s", got.ID, want.ID)
			}
			if !strings.Contains(seen.text, "dropped") {
				t.Errorf("the warnings are %q, want that something was dropped", seen.text)
			}
			// What else had the file, and nobody asked for.
			b.Mend(t.Context())
		})
	}
}

type warnings struct{ text string }

func (w *warnings) Emit(e progress.Event) {
	if e, ok := e.(progress.Warning); ok {
		w.text += e.Message + "\n"
	}
}

// Processes that open a new directory at the same time agree on the driver, and
// the one that asked for another is told.
func TestDriverIsChosenOnce(t *testing.T) {
	for range 50 {
		root := t.TempDir()
		errs := make(chan error)
		for _, name := range []string{"plain", "", "auto", "plain"} {
			go func() {
				b, err := Open(t.Context(), root, Options{Driver: name})
				if err == nil {
					err = b.Close(t.Context())
				}
				if err != nil && name == "plain" && strings.Contains(err.Error(), `"overlay"`) {
					err = nil // one of the others was first
				}
				errs <- err
			}()
		}
		for range 4 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
		kept, err := os.ReadFile(filepath.Join(root, "driver"))
		if err != nil || driverOf(filepath.Join(root, "snapshots")) != string(kept) {
			t.Fatalf("the driver is %q, %v, and the snapshots those of %q", kept, err, driverOf(filepath.Join(root, "snapshots")))
		}
	}
}

func TestDriverIsFound(t *testing.T) {
	for _, driver := range []string{"overlay", "plain"} {
		root := t.TempDir()
		open := func(name string) error {
			b, err := Open(t.Context(), root, Options{Driver: name})
			if err == nil {
				err = b.Close(t.Context())
			}
			return err
		}
		if err := open(driver); err != nil {
			if driver == "overlay" {
				t.Skip("needs overlayfs: ", err)
			}
			t.Fatal(err)
		}
		for _, text := range []string{"", driver[:3], "X" + driver[1:], "\x00\x00"} {
			path := filepath.Join(root, "driver")
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := open(""); err != nil {
				t.Errorf("driver file %q: Open = %v", text, err)
			}
			if got, err := os.ReadFile(path); string(got) != driver {
				t.Errorf("driver file was %q and is %q, %v, want %q", text, got, err, driver)
			}
			other := map[string]string{"overlay": "plain", "plain": "overlay"}[driver]
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := open(other); err == nil || !strings.Contains(err.Error(), driver) {
				t.Errorf("Open of a directory of %s with %s = %v, want it refused", driver, other, err)
			}
			if err := open(driver); err != nil {
				t.Fatal(err)
			}
		}
	}
}
