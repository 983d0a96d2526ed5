// Package testbase makes what tests and the demo build upon: base images out
// of this machine's own programs, and a registry on loopback that serves them.
// They stand in for the images of those names where no public registry
// answers.
package testbase

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// shellPath is the PATH that the images set.
const shellPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Make makes the image called kind:
//
//	busybox  Debian's busybox-static and the usual directories
//	alpine   the same with Alpine's /etc/os-release
//	node     with Node.js and the libraries it is linked to; CMD ["node"]
//	golang   with the Go toolchain in /usr/local/go
//
// The same programs make the same image, byte for byte.
func Make(kind string) (v1.Image, error) {
	var layers []func(*layer) error
	cfg := v1.Config{Env: []string{"PATH=" + shellPath}, Cmd: []string{"sh"}}
	switch kind {
	case "busybox":
		layers = append(layers, busybox)
	case "alpine":
		layers = append(layers, busybox, osRelease)
	case "node":
		layers = append(layers, busybox, osRelease, node)
		cfg.Cmd = []string{"node"}
	case "golang":
		layers = append(layers, busybox, osRelease, golang)
		cfg.Env = []string{"PATH=/go/bin:/usr/local/go/bin:" + shellPath, "GOPATH=/go", "GOTOOLCHAIN=local"}
		cfg.WorkingDir = "/go"
	default:
		return nil, fmt.Errorf("no base image %q: want busybox, alpine, node or golang", kind)
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: cfg})
	if err != nil {
		return nil, fmt.Errorf("base image %s: %w", kind, err)
	}
	for _, fill := range layers {
		l, err := newLayer(fill)
		if err == nil {
			img, err = mutate.AppendLayers(img, l)
		}
		if err != nil {
			return nil, fmt.Errorf("base image %s: %w", kind, err)
		}
	}
	return img, nil
}

// Push writes img to a registry that speaks plain HTTP, under ref:
// "127.0.0.1:5000/library/node:alpine".
func Push(ctx context.Context, img v1.Image, ref string) error {
	n, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	if err := remote.Write(n, img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// Tar writes the entries of a layer: those of Make, by the names of its kinds,
// or one of
//
//	npm        npm as this machine has it, at the same path, with its modules
//	toolchain  all of the Go toolchain, in usr/local/go
//	system     about 190 MB of this machine's programs, libraries and data, in
//	           opt/system: as many and as large as those of a small distribution
//
// The two blocks of zeros that end a tar are left to the caller.
func Tar(w io.Writer, part string) error {
	fill, ok := map[string]func(*layer) error{
		"busybox": busybox, "alpine": osRelease, "node": node, "golang": golang,
		"npm": npm, "toolchain": toolchain, "system": system,
	}[part]
	if !ok {
		return fmt.Errorf("no layer %q", part)
	}
	l := &layer{tar: tar.NewWriter(w), dirs: map[string]bool{".": true}}
	if err := fill(l); err != nil {
		return fmt.Errorf("layer %s: %w", part, err)
	}
	return l.tar.Flush()
}

// layer is a tar in the making. Owners are root, times the epoch.
type layer struct {
	tar  *tar.Writer
	dirs map[string]bool // written already
}

func newLayer(fill func(*layer) error) (v1.Layer, error) {
	var buf bytes.Buffer
	l := &layer{tar: tar.NewWriter(&buf), dirs: map[string]bool{".": true}}
	if err := fill(l); err != nil {
		return nil, err
	}
	if err := l.tar.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithCompressionLevel(gzip.BestSpeed), tarball.WithCompressedCaching)
}

// dir writes the directory name, without a leading "/", and what is above it.
func (l *layer) dir(name string, mode int64) error {
	if name = path.Clean(name); l.dirs[name] {
		return nil
	}
	if err := l.dir(path.Dir(name), 0o755); err != nil {
		return err
	}
	l.dirs[name] = true
	return l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode})
}

func (l *layer) symlink(name, target string) error {
	if err := l.dir(path.Dir(name), 0o755); err != nil {
		return err
	}
	return l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777})
}

func (l *layer) file(name string, mode int64, data string) error {
	if err := l.dir(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := io.WriteString(l.tar, data)
	return err
}

// copyFile writes this machine's file at host; links are followed.
func (l *layer) copyFile(name, host string) error {
	f, err := os.Open(host)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := l.dir(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(fi.Mode().Perm()), Size: fi.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(l.tar, f)
	return err
}

// copyTree writes the files below host for which want says so.
func (l *layer) copyTree(name, host string, want func(rel string, d fs.DirEntry) bool) error {
	return filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(host, p)
		switch {
		case err != nil:
			return err
		case !want(rel, d):
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case d.Type().IsRegular():
			return l.copyFile(path.Join(name, rel), p)
		}
		return nil
	})
}

// busybox is a static busybox under all its names, and the directories and
// accounts that programs expect.
func busybox(l *layer) error {
	program, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w; Debian has it in the package busybox-static", err)
	}
	list, err := exec.Command(program, "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	if err := l.copyFile("bin/busybox", program); err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			if err := l.symlink("bin/"+applet, "busybox"); err != nil {
				return err
			}
		}
	}
	for _, d := range []struct {
		name string
		mode int64
	}{{"dev", 0o755}, {"etc", 0o755}, {"home", 0o755}, {"proc", 0o555}, {"root", 0o700}, {"run", 0o755}, {"sys", 0o555}, {"tmp", 0o1777}, {"usr/bin", 0o755}, {"usr/local/bin", 0o755}, {"var/tmp", 0o1777}} {
		if err := l.dir(d.name, d.mode); err != nil {
			return err
		}
	}
	if err := l.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"); err != nil {
		return err
	}
	return l.file("etc/group", 0o644, "root:x:0:\nnogroup:x:65533:\nnobody:x:65534:\n")
}

func osRelease(l *layer) error {
	return l.file("etc/os-release", 0o644, "NAME=\"Alpine Linux\"\nID=alpine\nPRETTY_NAME=\"stand-in for Alpine Linux\"\n")
}

// node is Node.js as this machine has it, with its shared libraries.
func node(l *layer) error {
	program, err := exec.LookPath("node")
	if err != nil {
		return fmt.Errorf("%w; Debian has it in the package nodejs", err)
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		return err
	}
	if err := l.copyFile("usr/local/bin/node", program); err != nil {
		return err
	}
	libraries, err := linked(program)
	if err != nil {
		return err
	}
	for _, lib := range libraries {
		if err := l.copyFile(strings.TrimPrefix(lib, "/"), lib); err != nil {
			return err
		}
	}
	// Debian's Node.js reads some of its own modules from here.
	const modules = "/usr/share/nodejs"
	if _, err := os.Stat(modules); err != nil {
		return nil
	}
	return l.copyTree(modules[1:], modules, func(rel string, d fs.DirEntry) bool { return rel != "npm" && d.Name() != "node_modules" })
}

// linked lists the shared libraries of a program by absolute path, the dynamic
// loader included; none for a static one.
func linked(program string) ([]string, error) {
	out, err := exec.Command("ldd", program).CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("not a dynamic executable")) {
			return nil, nil
		}
		return nil, fmt.Errorf("ldd %s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	var libraries []string
	for line := range strings.Lines(string(out)) {
		for field := range strings.FieldsSeq(line) {
			if strings.HasPrefix(field, "/") {
				libraries = append(libraries, field)
			}
		}
	}
	return libraries, nil
}

// golang is what `go build` of the toolchain in use needs: no tests, no
// sources of the tools.
func golang(l *layer) error {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	const to = "usr/local/go"
	tools := "pkg/tool/" + runtime.GOOS + "_" + runtime.GOARCH
	if err := l.dir("go", 0o777); err != nil {
		return err
	}
	return l.copyTree(to, strings.TrimSpace(string(out)), func(rel string, d fs.DirEntry) bool {
		switch rel {
		case ".", "bin", "bin/go", "pkg", "pkg/include", "pkg/tool", tools, tools + "/asm", tools + "/compile", tools + "/link", "src", "go.env", "VERSION":
			return true
		case "src/cmd":
			return false
		}
		if strings.HasPrefix(rel, "pkg/include/") {
			return true
		}
		return strings.HasPrefix(rel, "src/") && d.Name() != "testdata" && !strings.HasSuffix(rel, "_test.go")
	})
}
