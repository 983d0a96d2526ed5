package sandbox_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
)

func quickRoot(tb testing.TB) oci.Mount {
	dir := tb.TempDir()
	for _, d := range []string{"lower/bin", "upper", "work"} {
		os.MkdirAll(filepath.Join(dir, d), 0o755)
	}
	data, _ := os.ReadFile("/usr/bin/busybox")
	os.WriteFile(filepath.Join(dir, "lower/bin/busybox"), data, 0o755)
	for _, n := range []string{"sh", "true", "cat", "ls", "mount", "id", "sleep", "ip", "env"} {
		os.Symlink("busybox", filepath.Join(dir, "lower/bin", n))
	}
	return oci.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + dir + "/lower", "upperdir=" + dir + "/upper", "workdir=" + dir + "/work"}}
}

func TestQuick(t *testing.T) {
	root := quickRoot(t)
	n := sandbox.NewNative(sandbox.NativeOptions{})
	var out bytes.Buffer
	p, err := n.Start(context.Background(), sandbox.Spec{Args: []string{"sh", "-c", "id; mount; ls -l /dev /; ip a; cat /proc/self/status /proc/self/cgroup"}, Env: []string{"PATH=/bin"}, Root: root, Stdout: &out, Stderr: &out, Hostname: "buildkitsandbox"})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait()
	t.Log(out.String(), err)
	filepath.Walk(filepath.Dir(root.Options[1][9:])+"/upper", func(p string, _ os.FileInfo, _ error) error { t.Log(p); return nil })
}

func BenchmarkTrue(b *testing.B) {
	root := quickRoot(b)
	n := sandbox.NewNative(sandbox.NativeOptions{})
	for b.Loop() {
		p, err := n.Start(context.Background(), sandbox.Spec{Args: []string{"true"}, Env: []string{"PATH=/bin"}, Root: root})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}
