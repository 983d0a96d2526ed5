package churn

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/parser/ignore"
)

// worktree is a git work tree, as far as its files tell what git tracks and what
// it ignores: .gitignore files, .git/info/exclude and the index. git itself is not
// asked: its configuration could have it run anything.
type worktree struct {
	root   *os.Root
	prefix string   // of the context in it, with slashes: "", or "sub/dir/"
	index  []string // what is tracked, sorted
	info   []gitRule
	dirs   map[string][]gitRule // of the .gitignore in a directory
}

// gitRule is a line of a .gitignore file.
type gitRule struct {
	id       string
	pattern  string // from dir; a .dockerignore has the same syntax
	dir      string // where the file is, with slashes: "", or "sub/dir/"
	floating bool   // the line has no slash: it is about names, at any depth
	negated  bool
	dirOnly  bool
	parts    []string
}

// Bounds of the files that are read.
const (
	maxIgnore = 1 << 20
	maxIndex  = 64 << 20
)

// worktree is the one that the context is in; nil where it is in none. The error
// is for one that cannot be understood.
func (b *Build) worktree() (*worktree, error) {
	if !b.opened {
		b.opened = true
		b.tree, b.treeErr = openWorktree(b.Dir)
	}
	return b.tree, b.treeErr
}

// Close releases what Advise has opened.
func (b *Build) Close() {
	if b.tree != nil {
		b.tree.root.Close()
	}
}

func openWorktree(dir string) (*worktree, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	for top := dir; ; top = filepath.Dir(top) {
		st, err := os.Lstat(filepath.Join(top, ".git"))
		if errors.Is(err, fs.ErrNotExist) {
			if top == filepath.Dir(top) {
				return nil, nil
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		t := &worktree{dirs: map[string][]gitRule{}}
		if rel, err := filepath.Rel(top, dir); err == nil && rel != "." {
			t.prefix = filepath.ToSlash(rel) + "/"
		}
		if err := t.open(top, st.IsDir()); err != nil {
			return nil, err
		}
		return t, nil
	}
}

// open reads what is wanted of .git, which is a directory, or a file that names
// it.
func (t *worktree) open(top string, isDir bool) (err error) {
	gitDir := filepath.Join(top, ".git")
	if !isDir {
		text, err := readSmall(os.OpenFile(gitDir, openFlags, 0))
		to, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "gitdir: ")
		if err != nil || !ok {
			return fmt.Errorf("%s is no directory, and names none", gitDir)
		}
		if gitDir = to; !filepath.IsAbs(to) {
			gitDir = filepath.Join(top, to)
		}
	}
	common := gitDir
	if text, err := readSmall(os.OpenFile(filepath.Join(gitDir, "commondir"), openFlags, 0)); err == nil {
		if common = strings.TrimSpace(string(text)); !filepath.IsAbs(common) {
			common = filepath.Join(gitDir, common)
		}
	}
	f, err := os.OpenFile(filepath.Join(gitDir, "index"), openFlags, 0)
	data, err := readRegular(f, err, maxIndex)
	if err == nil {
		t.index, err = parseIndex(data)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil // nothing has been added yet
	}
	if err != nil {
		return fmt.Errorf("read what git tracks: %w", err)
	}
	if text, err := readSmall(os.OpenFile(filepath.Join(common, "info", "exclude"), openFlags, 0)); err == nil {
		t.info = gitRules("", "exclude", string(text))
	}
	t.root, err = os.OpenRoot(top)
	return err
}

// A context may be anybody's: a pipe in a file's place is not waited for.
const openFlags = os.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC

func readSmall(f *os.File, err error) ([]byte, error) { return readRegular(f, err, maxIgnore) }

// readRegular reads what was opened, and closes it.
func readRegular(f *os.File, err error, most int64) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > most {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", f.Name(), most)
	}
	return io.ReadAll(io.LimitReader(f, most))
}

// gitRules reads a .gitignore file in dir; see gitignore(5).
func gitRules(dir, id, text string) []gitRule {
	var out []gitRule
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		for strings.HasSuffix(line, " ") && !strings.HasSuffix(line, `\ `) {
			line = line[:len(line)-1]
		}
		if line == "" || line[0] == '#' {
			continue
		}
		r := gitRule{dir: dir, id: fmt.Sprintf("git %s:%d", id, n)}
		line, r.negated = strings.CutPrefix(line, "!")
		line, r.dirOnly = strings.CutSuffix(line, "/")
		r.floating = !strings.Contains(line, "/")
		line = strings.ReplaceAll(strings.TrimPrefix(line, "/"), "[!", "[^")
		if line == "" {
			continue
		}
		r.pattern = line
		if r.parts = strings.Split(line, "/"); r.floating {
			r.parts = []string{"**", line}
		}
		if r.parts[len(r.parts)-1] == "**" { // all that is in a directory, but not itself
			r.parts = append(r.parts, "*")
		}
		out = append(out, r)
	}
	return out
}

// rulesIn are those of the .gitignore in dir, which is "", or "sub/dir/".
func (t *worktree) rulesIn(dir string) []gitRule {
	if r, ok := t.dirs[dir]; ok {
		return r
	}
	name := dir + ".gitignore"
	var rules []gitRule
	if text, err := readSmall(t.root.OpenFile(name, openFlags, 0)); err == nil {
		rules = gitRules(dir, name, string(text))
	}
	t.dirs[dir] = rules
	return rules
}

// ignores finds the line by which git ignores p, a path of the context, and
// what of p it matches.
func (t *worktree) ignores(p string, isDir bool) (rule, string, bool) {
	full := t.prefix + p[1:]
	if t.tracked(full) {
		return rule{}, "", false
	}
	rules := t.info
	dir := ""
	for {
		rules = append(rules[:len(rules):len(rules)], t.rulesIn(dir)...)
		name, _, more := strings.Cut(full[len(dir):], "/")
		at := dir + name
		if r, ok := decide(rules, at, more || isDir); ok {
			if len(at) < len(t.prefix) {
				return rule{}, "", false // the whole context is ignored: that says nothing
			}
			return t.ruleFor(r, at), "/" + at[len(t.prefix):], true
		}
		if !more {
			return rule{}, "", false
		}
		dir = at + "/"
	}
}

// decide is the last of rules that is about at, if it does not negate it.
func decide(rules []gitRule, at string, isDir bool) (gitRule, bool) {
	for _, r := range slices.Backward(rules) {
		if (isDir || !r.dirOnly) && matchParts(r.parts, strings.Split(at[len(r.dir):], "/")) {
			return r, !r.negated
		}
	}
	return gitRule{}, false
}

// matchParts matches a pattern with a path, both split at slashes; "**" is any
// number of names. Its time is bounded by the product of their lengths.
func matchParts(pattern, names []string) bool {
	i, j, star, from := 0, 0, -1, 0
	for j < len(names) {
		if i < len(pattern) && pattern[i] == "**" {
			star, from = i, j
			i++
			continue
		}
		if i < len(pattern) {
			if ok, err := path.Match(pattern[i], names[j]); ok && err == nil { // a bad one matches nothing
				i, j = i+1, j+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		from++ // the last "**" takes one more
		i, j = star+1, from
	}
	for i < len(pattern) && pattern[i] == "**" {
		i++
	}
	return i == len(pattern)
}

// ruleFor is r in the context's terms.
func (t *worktree) ruleFor(r gitRule, at string) rule {
	switch {
	case len(r.dir) <= len(t.prefix) && r.floating:
		return rule{name: r.id, pattern: r.pattern}
	case strings.HasPrefix(r.dir, t.prefix):
		dir := escape(r.dir[len(t.prefix):])
		if r.floating {
			dir = path.Join(dir, "**")
		}
		return rule{name: r.id, pattern: path.Join(dir, r.pattern), anchored: true}
	}
	// The line is one of a directory above the context.
	name := at[len(t.prefix):]
	return rule{name: r.id + name, pattern: escape(name), anchored: true}
}

// tracked reports whether git tracks the file at a path of the work tree, or
// something in the directory there.
func (t *worktree) tracked(full string) bool {
	if _, found := slices.BinarySearch(t.index, full); found {
		return true
	}
	i, _ := slices.BinarySearch(t.index, full+"/")
	return i < len(t.index) && strings.HasPrefix(t.index[i], full+"/")
}

// tracks reports whether m excludes something of the context that git tracks.
func (t *worktree) tracks(m *ignore.Matcher) bool {
	i, _ := slices.BinarySearch(t.index, t.prefix)
	for ; i < len(t.index) && strings.HasPrefix(t.index[i], t.prefix); i++ {
		if m.Match(t.index[i][len(t.prefix):], false) {
			return true
		}
	}
	return false
}

var errIndex = errors.New("the index has a form that is not known")

// fixed is the length of an entry of an index without its name: stat data, a
// SHA-1, flags.
const fixed = 40 + sha1.Size + 2

// parseIndex lists the paths of an index; see gitformat-index(5).
func parseIndex(data []byte) ([]string, error) {
	if len(data) < 12 || string(data[:4]) != "DIRC" {
		return nil, errIndex
	}
	version, n := binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint32(data[8:])
	if version < 2 || version > 4 || len(data) < 12+sha1.Size || int64(n)*fixed > int64(len(data)) {
		return nil, errIndex
	}
	// A repository with SHA-256 has another form, and fails this; index.skipHash
	// leaves zeros.
	data, end := data[:len(data)-sha1.Size], [sha1.Size]byte(data[len(data)-sha1.Size:])
	if end != [sha1.Size]byte{} && end != sha1.Sum(data) {
		return nil, errIndex
	}
	out := make([]string, 0, n)
	rest, last := data[12:], ""
	for range n {
		size := fixed
		if len(rest) < size+2 {
			return nil, errIndex
		}
		if version >= 3 && rest[size-2]&0x40 != 0 {
			size += 2 // extended flags
		}
		name := rest[size:]
		if version == 4 {
			drop, used := offset(name)
			if used == 0 || drop > uint64(len(last)) {
				return nil, errIndex
			}
			last, size, name = last[:uint64(len(last))-drop], size+used, name[used:]
		} else {
			last = ""
		}
		end := bytes.IndexByte(name, 0)
		if end < 0 {
			return nil, errIndex
		}
		last += string(name[:end])
		size += end + 1
		if version < 4 {
			size = (size + 7) &^ 7
		}
		// Of a conflict an index has several stages.
		if len(out) > 0 && last < out[len(out)-1] || last == "" || size > len(rest) {
			return nil, errIndex
		}
		out = append(out, last)
		rest = rest[size:]
	}
	// An extension in lower case changes what the entries mean: those of a
	// split index are elsewhere.
	for len(rest) >= 8 {
		if c := rest[0]; c < 'A' || c > 'Z' {
			return nil, errIndex
		}
		size := int64(binary.BigEndian.Uint32(rest[4:])) + 8
		if size > int64(len(rest)) {
			return nil, errIndex
		}
		rest = rest[size:]
	}
	return out, nil
}

// offset reads the number of a version 4 entry, as gitformat-pack(5) has those
// of OFS_DELTA.
func offset(b []byte) (n uint64, used int) {
	for i, c := range b[:min(len(b), 9)] {
		n = n<<7 | uint64(c&0x7f)
		if c&0x80 == 0 {
			return n, i + 1
		}
		n++
	}
	return 0, 0
}
