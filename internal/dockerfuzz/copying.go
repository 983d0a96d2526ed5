package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// copying is a COPY or ADD being carried out.
type copying struct {
	from, to string // roots
	dest     string // absolute, with a slash at the end where it is a directory's
	in       Instr
	uid, gid int // -1: each file's own
	links    map[uint64]string
	include  string           // of --parents: a pattern, "" for all
	led      map[pending]bool // directories that have been made for what they lead to
}

func (m *machine) copy(s *system, in Instr) error {
	from, err := m.source(in.From)
	if err != nil {
		return err
	}
	c := &copying{from: from, to: s.root, in: in, uid: -1, gid: -1, links: map[uint64]string{}}
	owners := s
	if in.Link && in.Chmod == "" { // a --chmod is done where the files belong
		c.to = m.temporary()
		owners = &system{root: c.to, bare: true}
	}
	if in.Chown != "" {
		if c.uid, c.gid, err = owners.owner(in.Chown); err != nil {
			return err
		}
	}
	c.dest = destination(s.workdir, s.expand(in.Dest))
	for _, a := range in.Args {
		if err := c.source(s.expand(a)); err != nil {
			return err
		}
	}
	for _, f := range in.Inline {
		d := *c
		d.from, d.include, d.in.Exclude = m.temporary(), "", nil
		if in.Chown == "" {
			d.uid, d.gid = 0, 0
		}
		if err := os.WriteFile(filepath.Join(d.from, f.Name), []byte(s.expand(f.Data)), 0o644); err != nil {
			return err
		}
		if err := d.match("/" + f.Name); err != nil {
			return err
		}
	}
	if c.to != s.root {
		return merge(c.to, s.root)
	}
	return nil
}

func destination(workdir, dest string) string {
	dir := strings.HasSuffix(dest, "/") || path.Base(dest) == "." || dest == ""
	if !path.IsAbs(dest) {
		dest = path.Join(workdir, dest)
	}
	if dest = path.Clean(dest); dir && dest != "/" {
		dest += "/"
	}
	return dest
}

// source copies all that a source names.
func (c *copying) source(source string) error {
	c.include = ""
	if c.in.Parents {
		base, pattern, ok := strings.Cut(source, "/./")
		if !ok {
			base, pattern = "/", source
		}
		source, c.include = base, strings.TrimPrefix(path.Clean("/"+pattern), "/")
		if c.include == "" && path.Clean("/"+base) != "/" {
			return errors.New("nothing follows the pivot")
		}
		if !wild(base) && !wild(pattern) {
			if err := c.required(base); err != nil {
				return err
			}
		}
	}
	matches, err := find(c.from, source)
	if err != nil {
		return err
	}
	for _, match := range matches {
		if err := c.match(match); err != nil {
			return fmt.Errorf("%s: %w", match, err)
		}
	}
	return nil
}

// required is an error unless --parents and --exclude leave what is included of
// base, or something in it. No link leads to it.
func (c *copying) required(base string) error {
	missing := fmt.Errorf("%s: not found", path.Join("/", base, c.include))
	at, err := resolve(c.from, path.Clean("/"+base), false)
	if err != nil || c.include == "" {
		return missing
	}
	top := at
	for _, name := range strings.Split(c.include, "/") {
		if !lstat(c.from, at).IsDir() {
			return missing
		}
		at = path.Join(at, name)
	}
	if kind := lstat(c.from, at); kind&os.ModeSymlink != 0 && path.Dir(at) == "/" {
		// In the top of a tree a link leads somewhere.
		to, err := resolve(c.from, at, true)
		if err != nil || lstat(c.from, to)&os.ModeIrregular != 0 {
			return missing
		}
	}
	left := false
	err = filepath.WalkDir(filepath.Join(c.from, at), func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(filepath.Join(c.from, top), p)
		left = left || c.takes(rel)
		return err
	})
	if err != nil || !left {
		return missing
	}
	return nil
}

func (c *copying) octal() (uint32, bool) {
	n, err := strconv.ParseUint(c.in.Chmod, 8, 32)
	return uint32(n), err == nil
}

// parents makes directories for the copy to go into.
func (c *copying) parents(p string) error {
	mode := uint32(0o755)
	if n, ok := c.octal(); ok {
		mode = n & 0o777
	}
	uid, gid := c.uid, c.gid
	if c.in.Chown == "" {
		uid, gid = -1, -1
	}
	return makeDirs(c.to, p, mode, uid, gid)
}

// match copies one thing: a directory's contents, or a file under its name.
func (c *copying) match(name string) error {
	src, err := resolve(c.from, name, true)
	if err != nil {
		return err
	}
	if c.in.Op == "ADD" {
		if done, err := c.extract(filepath.Join(c.from, src)); done || err != nil {
			return err
		}
	}
	above := c.dest
	if !strings.HasSuffix(c.dest, "/") {
		above = path.Dir(c.dest)
	}
	if above, err = resolve(c.to, above, true); err != nil {
		return err
	}
	if err := c.parents(above); err != nil {
		return err
	}
	at, err := resolve(c.to, c.dest, true)
	if err != nil {
		return err
	}
	dir := lstat(c.from, src).IsDir()
	if !dir && lstat(c.to, at).IsDir() {
		at = path.Join(at, path.Base(name))
	}
	if err := c.parents(path.Dir(at)); err != nil {
		return err
	}
	if dir && lstat(c.to, at)&os.ModeIrregular != 0 {
		if err := c.parents(at); err != nil {
			return err
		}
	}
	return c.item(src, "", at, nil)
}

// takes reports whether --parents and --exclude leave the path.
func (c *copying) takes(rel string) bool {
	if rel == "" {
		return true
	}
	if c.include != "" && !ignored([]string{c.include}, rel) {
		return false
	}
	return !ignored(c.in.Exclude, rel)
}

// pending is a directory that is made only if something comes into it.
type pending struct{ src, at string }

// item copies src, whose path below the match is rel, to at.
func (c *copying) item(src, rel, at string, above []pending) error {
	from, to := filepath.Join(c.from, src), filepath.Join(c.to, at)
	kind := lstat(c.from, src)
	taken := c.takes(rel)
	if !taken && !kind.IsDir() {
		return nil
	}
	if taken {
		for _, p := range above {
			if c.led[p] {
				continue
			}
			if c.led == nil {
				c.led = map[pending]bool{}
			}
			c.led[p] = true
			if st := lstat(c.to, p.at); st.IsDir() {
				// What leads to something taken gives a directory that is there its
				// mode, and nothing else.
				if err := os.Chmod(filepath.Join(c.to, p.at), lstat(c.from, p.src)); err != nil {
					return err
				}
				continue
			}
			if err := os.Mkdir(filepath.Join(c.to, p.at), 0o755); err != nil {
				return err
			}
			if err := c.meta(filepath.Join(c.from, p.src), filepath.Join(c.to, p.at)); err != nil {
				return err
			}
		}
		above = nil
	}
	old := lstat(c.to, at)
	if !kind.IsDir() {
		if old.IsDir() {
			return errors.New("a file cannot replace a directory")
		}
		if old&os.ModeIrregular == 0 {
			if err := os.Remove(to); err != nil {
				return err
			}
		}
		if err := c.file(from, to); err != nil {
			return err
		}
		return c.meta(from, to)
	}
	if taken {
		switch {
		case old&os.ModeIrregular != 0:
			if err := os.Mkdir(to, 0o755); err != nil {
				return err
			}
			if err := c.meta(from, to); err != nil {
				return err
			}
		case !old.IsDir():
			return errors.New("a directory cannot replace what is none")
		case rel != "":
			if err := c.meta(from, to); err != nil {
				return err
			}
		}
	} else {
		above = append(above[:len(above):len(above)], pending{src, at})
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := c.item(path.Join(src, e.Name()), path.Join(rel, e.Name()), path.Join(at, e.Name()), above); err != nil {
			return err
		}
	}
	return nil
}

// file copies what is no directory; a file met before is linked.
func (c *copying) file(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 {
		if first, ok := c.links[st.Ino]; ok {
			return os.Link(first, to)
		}
		c.links[st.Ino] = to
	}
	return copyBytes(from, to)
}

// copyBytes makes to what from is, but for its metadata.
func copyBytes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		return os.WriteFile(to, data, 0o600)
	case unix.S_IFLNK:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	return unix.Mknod(to, st.Mode, int(st.Rdev))
}

// meta gives the copy what the instruction says.
func (c *copying) meta(from, to string) error {
	return copyMeta(from, to, c.uid, c.gid, func(st uint32) uint32 {
		if n, ok := c.octal(); ok {
			return n
		}
		return chmod(c.in.Chmod, st)
	})
}

// copyMeta copies owner (unless one is given), mode, capability and time.
func copyMeta(from, to string, uid, gid int, mode func(uint32) uint32) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if uid < 0 {
		uid, gid = int(st.Uid), int(st.Gid)
	}
	if err := os.Lchown(to, uid, gid); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		perm := st.Mode
		if mode != nil {
			perm = mode(st.Mode)
		}
		if err := unix.Chmod(to, perm&0o7777); err != nil {
			return err
		}
	}
	buf := make([]byte, 64)
	if n, err := unix.Lgetxattr(from, "security.capability", buf); err == nil {
		if err := unix.Lsetxattr(to, "security.capability", buf[:n], 0); err != nil {
			return err
		}
	}
	return setTime(to, st.Mtim.Sec)
}

// chmod applies a symbolic mode to a file's mode.
func chmod(text string, st uint32) uint32 {
	if text == "" {
		return st
	}
	for clause := range strings.SplitSeq(text, ",") {
		op := strings.IndexAny(clause, "+-=")
		var mask, bits uint32
		for _, who := range clause[:op] {
			mask |= map[rune]uint32{'u': 0o4700, 'g': 0o2070, 'o': 0o0007, 'a': 0o7777}[who]
		}
		if op == 0 {
			mask = 0o7777
		}
		for _, what := range clause[op+1:] {
			if what == 'X' && (st&0o111 != 0 || st&unix.S_IFMT == unix.S_IFDIR) {
				what = 'x'
			}
			bits |= map[rune]uint32{'r': 0o444, 'w': 0o222, 'x': 0o111, 's': 0o6000, 't': 0o1000}[what]
		}
		switch clause[op] {
		case '+':
			st |= bits & mask
		case '-':
			st &^= bits & mask
		default:
			st = st&^mask | bits&mask
		}
	}
	return st
}

// merge puts the tree of a --link on top, as a layer is put.
func merge(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if st, err := os.Lstat(dst); err == nil && !(st.IsDir() && e.IsDir()) {
			if err := os.RemoveAll(dst); err != nil {
				return err
			}
		}
		if e.IsDir() {
			if err := os.Mkdir(dst, 0o755); err != nil && !os.IsExist(err) {
				return err
			}
			if err := merge(src, dst); err != nil {
				return err
			}
		} else if err := copyBytes(src, dst); err != nil {
			return err
		}
		if err := copyMeta(src, dst, -1, -1, nil); err != nil {
			return err
		}
	}
	return nil
}
