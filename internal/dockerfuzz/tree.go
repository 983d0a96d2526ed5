package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// Node is what is compared of a file.
type Node struct {
	Kind         Kind
	Mode         uint32
	UID, GID     int
	Sum          string // of a file: size and digest
	Link         string
	Major, Minor uint32
	Cap          string // of extended attributes, the file capability
	Time         int64  // seconds; now for what the build wrote
	Group        string // the first name of a file that has several
	inode        any
}

// now stands for all times of the build itself.
const now = -1

// recent: the times that cases set are before it.
var recent = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).Unix()

func clock(t int64) int64 {
	if t >= recent {
		return now
	}
	return t
}

// Tree is a root file system: paths without a slash in front; "" is the root.
type Tree map[string]Node

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return fmt.Sprintf("%d:%s", len(data), hex.EncodeToString(s[:6]))
}

// group names the files that have several names.
func (t Tree) group() {
	first := map[any]string{}
	for _, p := range slices.Sorted(maps.Keys(t)) {
		n := t[p]
		if n.inode == nil || n.Kind == Dir {
			continue
		}
		if leader, ok := first[n.inode]; ok {
			l := t[leader]
			n.Group, l.Group = leader, leader
			t[p], t[leader] = n, l
		} else {
			first[n.inode] = p
		}
	}
}

// readTree reads a directory.
func readTree(root string) (Tree, error) {
	t := Tree{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
		n := Node{Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid), Time: clock(st.Mtim.Sec)}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			n.Kind, n.Sum = File, sum(data)
		case unix.S_IFDIR:
			n.Kind = Dir
		case unix.S_IFLNK:
			n.Kind = Symlink
			if n.Link, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFIFO:
			n.Kind = Fifo
		case unix.S_IFCHR:
			n.Kind, n.Major, n.Minor = Device, unix.Major(st.Rdev), unix.Minor(st.Rdev)
		default:
			return fmt.Errorf("%s is of no kind that cases have", p)
		}
		if st.Nlink > 1 {
			n.inode = st.Ino
		}
		buf := make([]byte, 64)
		if k, err := unix.Lgetxattr(p, "security.capability", buf); err == nil {
			n.Cap = hex.EncodeToString(buf[:k])
		}
		rel, err := filepath.Rel(root, p)
		if rel == "." {
			rel = ""
		}
		t[rel] = n
		return err
	})
	t.group()
	return t, err
}

// Image is what a builder made.
type Image struct {
	ID      string
	Config  map[string]any // without times
	History []string       // what made each layer, "empty" before those without
	Layers  []string       // one line for each entry, in the tar's order
	Flat    Tree
}

// readImage reads an OCI layout's tar with one image in it.
func readImage(file string) (*Image, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blobs := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		if blobs[h.Name], err = io.ReadAll(r); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
	}
	var index, manifest struct {
		Manifests, Layers []struct{ Digest string }
		Config            struct{ Digest string }
	}
	blob := func(digest string) []byte { return blobs["blobs/"+strings.Replace(digest, ":", "/", 1)] }
	if err := json.Unmarshal(blobs["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		return nil, fmt.Errorf("index.json of %s: want one image: %w", file, err)
	}
	if err := json.Unmarshal(blob(index.Manifests[0].Digest), &manifest); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	im := &Image{ID: manifest.Config.Digest, Flat: Tree{}}
	if err := im.readConfig(blob(im.ID)); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	for _, l := range manifest.Layers {
		if err := im.apply(blob(l.Digest)); err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	im.Flat.group()
	return im, nil
}

func (im *Image) readConfig(data []byte) error {
	var c struct {
		Config  map[string]any
		History []struct {
			CreatedBy  string `json:"created_by"`
			EmptyLayer bool   `json:"empty_layer"`
		}
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return err
	}
	im.Config = c.Config
	for _, h := range c.History {
		line := h.CreatedBy
		if h.EmptyLayer {
			line = "empty " + line
		}
		im.History = append(im.History, line)
	}
	return nil
}

func inflate(data []byte) (io.Reader, error) {
	switch {
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		return gzip.NewReader(bytes.NewReader(data))
	case bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1))
	}
	return bytes.NewReader(data), nil
}

// apply puts a layer onto the flat tree. See the image specification's
// layer.md: whiteouts are about what lies below.
func (im *Image) apply(data []byte) error {
	r, err := inflate(data)
	if err != nil {
		return err
	}
	var lines strings.Builder
	added := map[string]*tar.Header{}
	var order []string
	sums := map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			return err
		}
		p := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		fmt.Fprintf(&lines, "%c %q %o %d:%d %s %q %d:%d %d %x\n", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid,
			sum(content), h.Linkname, h.Devmajor, h.Devminor, clock(h.ModTime.Unix()), h.PAXRecords["SCHILY.xattr.security.capability"])
		dir, base := path.Split(p)
		dir = strings.TrimSuffix(dir, "/")
		if base == ".wh..wh..opq" {
			im.Flat.empty(dir)
			continue
		}
		if gone, ok := strings.CutPrefix(base, ".wh."); ok {
			im.Flat.remove(path.Join(dir, gone))
			continue
		}
		if p == "" {
			continue // the root itself: it has a mode, and is no entry of the tree
		}
		if _, twice := added[p]; !twice {
			order = append(order, p)
		}
		added[p], sums[p] = h, sum(content)
	}
	im.Layers = append(im.Layers, lines.String())
	for _, p := range order {
		if err := im.Flat.put(p, added[p], sums[p]); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

func (t Tree) empty(p string) {
	for q := range t {
		if strings.HasPrefix(q, p+"/") || p == "" && q != "" {
			delete(t, q)
		}
	}
}

func (t Tree) remove(p string) {
	t.empty(p)
	delete(t, p)
}

func (t Tree) put(p string, h *tar.Header, content string) error {
	n := Node{
		Mode: uint32(h.Mode) & 0o7777, UID: h.Uid, GID: h.Gid, Time: clock(h.ModTime.Unix()), inode: h,
		Cap: hex.EncodeToString([]byte(h.PAXRecords["SCHILY.xattr.security.capability"])),
	}
	if h.Typeflag == tar.TypeLink {
		old, ok := t[strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")]
		if !ok {
			return errors.New("hard link to nothing")
		}
		n.Kind, n.Sum, n.Link, n.Major, n.Minor, n.inode = old.Kind, old.Sum, old.Link, old.Major, old.Minor, old.inode
		if n.Kind == Symlink {
			n.Mode = old.Mode
		}
		t.remove(p)
		for q, o := range t {
			if o.inode == n.inode { // its header is about the file
				t[q] = n
			}
		}
		t[p] = n
		return nil
	}
	switch h.Typeflag {
	case tar.TypeReg:
		n.Kind, n.Sum = File, content
	case tar.TypeDir:
		n.Kind = Dir
	case tar.TypeSymlink:
		n.Kind, n.Link, n.Mode = Symlink, h.Linkname, 0o777
	case tar.TypeFifo:
		n.Kind = Fifo
	case tar.TypeChar:
		n.Kind, n.Major, n.Minor = Device, uint32(h.Devmajor), uint32(h.Devminor)
	default:
		return fmt.Errorf("type %q is none that cases have", h.Typeflag)
	}
	if n.Kind != Dir || t[p].Kind != Dir {
		t.remove(p)
	}
	t[p] = n
	return nil
}
