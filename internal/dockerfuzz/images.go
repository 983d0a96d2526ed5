package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

const imagePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// capability is a version 2 file capability: CAP_NET_BIND_SERVICE, permitted
// and effective. See capabilities(7).
var capability = string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})

// applets are the busybox programs that scripts use.
var applets = strings.Fields("sh mkdir rm mv ln chmod chown cp touch mkfifo mknod id pwd cat rmdir ls sort find test [ true echo")

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n"
	group  = "root:x:0:\nbob:x:1000:\nstaff:x:50:bob\nextra:x:2000:bob\n"
)

// commonLayer is what stands below every base image's own layers.
func commonLayer() ([]Entry, error) {
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("read a static busybox (Debian's busybox-static): %w", err)
	}
	dir := func(p string, mode uint32) Entry { return Entry{Path: p, Kind: Dir, Mode: mode, Time: otherTime} }
	file := func(p, data string, mode uint32) Entry {
		return Entry{Path: p, Kind: File, Mode: mode, Data: data, Time: otherTime}
	}
	out := []Entry{
		dir("bin", 0o755), file("bin/busybox", string(busybox), 0o755),
		dir("dev", 0o755), dir("etc", 0o755), file("etc/group", group, 0o644), file("etc/passwd", passwd, 0o644),
		dir("proc", 0o555), dir("root", 0o700), dir("sys", 0o555), dir("tmp", 0o1777),
	}
	for _, a := range applets {
		out = append(out, Entry{Path: "bin/" + a, Kind: Symlink, Mode: 0o777, Link: "busybox", Time: otherTime})
	}
	return out, nil
}

// tarball is the archive of entries.
func tarball(entries []Entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.Path, Mode: int64(e.Mode), Uid: e.UID, Gid: e.GID,
			ModTime: time.Unix(e.Time, 0), Format: tar.FormatPAX,
		}
		switch e.Kind {
		case File:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.Data))
		case Dir:
			h.Typeflag, h.Name = tar.TypeDir, strings.TrimSuffix(e.Path, "/")+"/"
		case Symlink:
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
		case Hardlink:
			h.Typeflag, h.Linkname = tar.TypeLink, e.Link
		case Fifo:
			h.Typeflag = tar.TypeFifo
		case Device:
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, 3
		case Whiteout:
			h.Typeflag, h.Name, h.Mode = tar.TypeReg, path.Join(path.Dir(e.Path), ".wh."+path.Base(e.Path)), 0
		case Opaque:
			h.Typeflag, h.Name, h.Mode = tar.TypeReg, path.Join(e.Path, ".wh..wh..opq"), 0
		}
		if e.Cap {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capability}
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("write %s: %w", e.Path, err)
		}
		if e.Kind == File {
			if _, err := io.WriteString(w, e.Data); err != nil {
				return nil, fmt.Errorf("write %s: %w", e.Path, err)
			}
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(data) // a buffer takes everything
	_ = w.Close()
	return b.Bytes()
}

// images serves base images on loopback.
type images struct {
	addr   string
	server *http.Server
	common []Entry
	bottom v1.Layer // of common
}

func serveImages() (*images, error) {
	im := &images{}
	var err error
	if im.common, err = commonLayer(); err != nil {
		return nil, err
	}
	data, err := tarball(im.common)
	if err != nil {
		return nil, err
	}
	im.bottom = static.NewLayer(data, types.OCIUncompressedLayer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	im.addr = l.Addr().String()
	im.server = &http.Server{Handler: registry.New(registry.Logger(discardLog()))}
	go im.server.Serve(l) //nolint:errcheck // ends with Close
	return im, nil
}

func (im *images) Close() error { return im.server.Close() }

// publish puts the case's base images into the registry and says what they are
// called there.
func (im *images) publish(c *Case) (imageName, error) {
	names := make([]string, len(c.Bases))
	for i, b := range c.Bases {
		text, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(text)
		names[i] = fmt.Sprintf("%s/base:%s", im.addr, hex.EncodeToString(sum[:8]))
		if err := im.push(names[i], b); err != nil {
			return nil, fmt.Errorf("push base %d: %w", i, err)
		}
	}
	return func(i int) string { return names[i] }, nil
}

func (im *images) push(ref string, b Base) error {
	cfg := v1.Config{Env: append([]string{"PATH=" + imagePath}, b.Env...), User: b.User, WorkingDir: b.Workdir}
	for _, in := range b.OnBuild {
		if in.Form == "heredoc" { // does not fit into a trigger
			in.Form = "exec"
		}
		cfg.OnBuild = append(cfg.OnBuild, strings.ReplaceAll(in.render(nil), "\\\n", ""))
	}
	img, err := mutate.ConfigFile(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		&v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: cfg, Created: v1.Time{Time: time.Unix(otherTime, 0)}})
	if err != nil {
		return err
	}
	layers := []v1.Layer{im.bottom}
	for _, l := range b.Layers {
		data, err := tarball(l)
		if err != nil {
			return err
		}
		layers = append(layers, static.NewLayer(data, types.OCIUncompressedLayer))
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		return err
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return err
	}
	return remote.Write(r, img)
}

// writeContext puts the context's files into dir.
func writeContext(dir string, entries []Entry) error {
	for _, e := range entries {
		if err := os.MkdirAll(filepath.Join(dir, path.Dir(e.Path)), 0o755); err != nil {
			return err
		}
		if e.Kind == Archive {
			data, err := tarball(e.Inner)
			if err != nil {
				return err
			}
			if e.Gzip {
				data = gzipped(data)
			}
			e.Kind, e.Data = File, string(data)
		}
		if err := writeEntry(dir, e); err != nil {
			return fmt.Errorf("write %s: %w", e.Path, err)
		}
	}
	// Directories' times were changed by what came into them.
	return filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = setTime(p, otherTime)
		}
		return err
	})
}

// writeEntry makes e below dir, where nothing stands in its way but, for a
// directory, that directory.
func writeEntry(dir string, e Entry) error {
	p := filepath.Join(dir, e.Path)
	var err error
	switch e.Kind {
	case File:
		err = os.WriteFile(p, []byte(e.Data), 0o600)
	case Dir:
		if err = os.Mkdir(p, 0o700); os.IsExist(err) {
			err = nil
		}
	case Symlink:
		err = os.Symlink(e.Link, p)
	case Hardlink:
		err = os.Link(filepath.Join(dir, e.Link), p)
	case Fifo:
		err = unix.Mkfifo(p, 0o600)
	case Device:
		err = unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
	default:
		err = fmt.Errorf("a %s is no file", e.Kind)
	}
	if err != nil {
		return err
	}
	return setMeta(p, e)
}

// setMeta gives the file at p the owner, mode, capability and time of e.
func setMeta(p string, e Entry) error {
	if err := os.Lchown(p, e.UID, e.GID); err != nil {
		return err
	}
	if e.Kind != Symlink {
		if err := unix.Chmod(p, e.Mode); err != nil {
			return err
		}
	}
	if e.Cap {
		if err := unix.Lsetxattr(p, "security.capability", []byte(capability), 0); err != nil {
			return err
		}
	}
	return setTime(p, e.Time)
}

func setTime(p string, seconds int64) error {
	t := unix.Timespec{Sec: seconds}
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}
