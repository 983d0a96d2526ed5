package testbase

import (
	"archive/tar"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// need skips where a program is missing; in CI that is a failure.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

func TestMake(t *testing.T) {
	need(t, "busybox", "node", "ldd")
	for _, tt := range []struct {
		kind  string
		files []string
		cmd   string
	}{
		{"busybox", []string{"bin/busybox", "bin/sh", "etc/passwd", "tmp/"}, "sh"},
		{"alpine", []string{"bin/sh", "etc/os-release"}, "sh"},
		{"node", []string{"bin/sh", "usr/local/bin/node"}, "node"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			img, err := Make(tt.kind)
			if err != nil {
				t.Fatal(err)
			}
			if cfg, err := img.ConfigFile(); err != nil || cfg.Config.Cmd[0] != tt.cmd {
				t.Errorf("Make(%q): Cmd %v, %v, want %q", tt.kind, cfg.Config.Cmd, err, tt.cmd)
			}
			files := map[string]bool{}
			r := mutate.Extract(img)
			defer r.Close()
			for tr := tar.NewReader(r); ; {
				h, err := tr.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				files[h.Name] = true
			}
			for _, f := range tt.files {
				if !files[f] && !files[strings.TrimSuffix(f, "/")] {
					t.Errorf("Make(%q) has no %s among %q", tt.kind, f, slices.Sorted(maps.Keys(files)))
				}
			}
		})
	}
	first, err1 := Make("busybox")
	second, err2 := Make("busybox")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	d1, err1 := first.Digest()
	d2, err2 := second.Digest()
	if err := errors.Join(err1, err2); err != nil || d1 != d2 {
		t.Errorf("Make(%q) twice: digests %s and %s, %v, want equal ones", "busybox", d1, d2, err)
	}
	if _, err := Make("plan9"); err == nil {
		t.Error(`Make("plan9") succeeded, want an error`)
	}
}

func TestRegistry(t *testing.T) {
	need(t, "busybox", "docker-registry")
	r, err := StartRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	img, err := Make("busybox")
	if err != nil {
		t.Fatal(err)
	}
	ref := r.Addr + "/library/busybox:latest"
	if err := Push(t.Context(), img, ref); err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := crane.Digest(ref, crane.Insecure); err != nil || got != want.String() {
		t.Errorf("crane.Digest(%q) = %s, %v, want %s", ref, got, err, want)
	}
}
