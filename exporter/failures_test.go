package exporter

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/oci"
)

// Whatever goes wrong, nothing appears under the final name, and what was there
// stays.
func TestFailures(t *testing.T) {
	a, _ := built("a", 2<<20)
	boom := errors.New("boom")
	broken, changed, lost := a, a, pulled(t, "p", "")
	broken.Tar = func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader("some"), iotestErr{boom})), nil
	}
	changed.Tar = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("other")), nil }
	lost.Compressed = func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("not these bytes")), nil
	}
	for name, layer := range map[string]oci.Layer{"broken": broken, "changed": changed, "lost": lost} {
		for _, kind := range []string{"type=oci,dest=", "type=oci,compression=uncompressed,dest=", "type=docker,dest=", "type=oci,tar=false,dest="} {
			dir := t.TempDir()
			if _, err := export(t, parse(t, kind+filepath.Join(dir, "out")), Options{}, resultOf([]string{"x"}, imageOf("amd64", layer))); err == nil {
				t.Errorf("%s, %s: no error", name, kind)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("%s, %s: left %v", name, kind, left)
			}
		}
	}
	for _, kind := range []string{"type=oci", "type=docker", "type=tar"} {
		_, err := export(t, parse(t, kind+",dest=/dev/full"), Options{}, resultOf([]string{"x"}, imageOf("amd64", a)))
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "/dev/full") {
			t.Errorf("%s to a full device = %v, want %v", kind, err, unix.ENOSPC)
		}
	}
	// A canceled export.
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	slow := a
	slow.Tar = func(context.Context) (io.ReadCloser, error) {
		cancel()
		return a.Tar(ctx)
	}
	e, err := New(parse(t, "type=oci,dest="+filepath.Join(dir, "out")), Options{Temp: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Export(ctx, resultOf(nil, imageOf("amd64", slow))); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled export = %v, want %v", err, context.Canceled)
	}
	e.Close()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("canceled export left %v", left)
	}
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }
