// Package pick chooses what a COPY takes from a tree, and hashes it.
//
// The rules are BuildKit's: a source's symbolic links are followed inside the
// tree, a directory stands for its contents, a wildcard's match ends the
// descent, a directory that only leads to included files is taken with them.
package pick

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// Tree is what is chosen from; *tree.Tree is one. Paths are absolute and clean.
type Tree interface {
	Lstat(path string) (tree.Entry, error)
	Quick(path string) (tree.Entry, error)
	ReadDir(path string) ([]string, error)
	Resolve(path string, last bool) (string, error)
}

// Lister is a Tree that lists a directory with all that is in it at once.
type Lister interface {
	List(dir string) (Listing, error)
	// Ahead says which directories will be listed next, in that order.
	Ahead(dirs []string)
}

// Listing is what is in a directory, sorted by name.
type Listing interface {
	Len() int
	Name(i int) string
	IsDir(i int) bool
	Entry(i int) tree.Entry
}

// Match is something that a source names.
type Match struct {
	Name string // path as named: a file is copied under its base
	Real string // with symbolic links followed
	Dir  bool
}

// NotFoundError is the error for a source without wildcards that names nothing.
type NotFoundError struct {
	Path string
	Why  string // where the tree has it, and the COPY does not come to it; else ""
}

func (e *NotFoundError) Error() string {
	if e.Why != "" {
		return fmt.Sprintf("%q: not found: %s", e.Path, e.Why)
	}
	return fmt.Sprintf("%q: not found", e.Path)
}

// Is makes it an fs.ErrNotExist.
func (e *NotFoundError) Is(err error) bool { return err == fs.ErrNotExist }

// Matches is what source names, in the order of a walk. A pattern that matches
// nothing is no error; a name without wildcards that is not there is a
// *NotFoundError.
func Matches(ctx context.Context, t Tree, source string, wildcards bool) ([]Match, error) {
	names := []string{path.Clean(source)}
	if wildcards {
		base, pattern := splitWildcards(source)
		names[0] = base
		if pattern != "" {
			var err error
			if names, err = expand(ctx, t, base, pattern); err != nil {
				return nil, err
			}
		}
	}
	var out []Match
	for _, name := range names {
		resolved, err := t.Resolve(name, true)
		if err != nil {
			return nil, err
		}
		e, err := t.Quick(resolved)
		if isMissing(err) {
			return nil, &NotFoundError{Path: name}
		}
		if err != nil {
			return nil, err
		}
		out = append(out, Match{Name: name, Real: resolved, Dir: e.IsDir()})
	}
	return out, nil
}

func isMissing(err error) bool {
	if err == nil {
		return false
	}
	pe, ok := err.(*fs.PathError)
	return ok && (pe.Err == unix.ENOENT || pe.Err == unix.ENOTDIR)
}

func hasWildcards(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// splitWildcards cuts a path before its first component with a wildcard.
func splitWildcards(p string) (base, pattern string) {
	parts := strings.Split(strings.Trim(path.Clean("/"+p), "/"), "/")
	for i, c := range parts {
		if hasWildcards(c) {
			return "/" + strings.Join(parts[:i], "/"), strings.Join(parts[i:], "/")
		}
	}
	return "/" + strings.Join(parts, "/"), ""
}

// expand finds the paths below base that pattern matches.
func expand(ctx context.Context, t Tree, base, pattern string) ([]string, error) {
	real, err := t.Resolve(base, true)
	if err != nil {
		return nil, err
	}
	if _, err := t.Quick(real); isMissing(err) {
		return nil, &NotFoundError{Path: base}
	}
	if spansSlash(pattern) {
		return search(ctx, t, real, "", pattern)
	}
	// "*" does not match "/": a match has as many components as the pattern,
	// and each component can be matched by itself.
	var walk func(dir string, parts []string) ([]string, error)
	walk = func(dir string, parts []string) ([]string, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		names, err := t.ReadDir(dir)
		if isMissing(err) {
			return nil, nil // a file, or a symbolic link: not descended into
		}
		if err != nil {
			return nil, err
		}
		var out []string
		for _, n := range names {
			ok, err := path.Match(parts[0], n)
			if err != nil {
				return nil, fmt.Errorf("pattern %q: %w", pattern, err)
			}
			if !ok {
				continue
			}
			if len(parts) == 1 {
				out = append(out, path.Join(dir, n))
				continue
			}
			below, err := walk(path.Join(dir, n), parts[1:])
			if err != nil {
				return nil, err
			}
			out = append(out, below...)
		}
		return out, nil
	}
	return walk(real, strings.Split(pattern, "/"))
}

// spansSlash reports whether pattern has a class that matches "/", as "[/]" and
// "[^a]" do in path.Match.
func spansSlash(pattern string) bool {
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '\\':
			i++
		case '[':
			end := i + 1
			for end < len(pattern) && pattern[end] != ']' {
				if pattern[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(pattern) {
				return false // no pattern: path.Match says so
			}
			if ok, _ := path.Match(pattern[i:end+1], "/"); ok {
				return true
			}
			i = end
		}
	}
	return false
}

// search finds the paths at any depth below dir that pattern matches as a whole;
// rel is dir as the pattern sees it.
func search(ctx context.Context, t Tree, dir, rel, pattern string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	names, err := t.ReadDir(dir)
	if isMissing(err) {
		return nil, nil // a file, or a symbolic link: not descended into
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range names {
		below := path.Join(rel, n)
		ok, err := path.Match(pattern, below)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", pattern, err)
		}
		found := []string{path.Join(dir, n)}
		if !ok {
			if found, err = search(ctx, t, found[0], below, pattern); err != nil {
				return nil, err
			}
		}
		out = append(out, found...)
	}
	return out, nil
}

// Filter says what below a match is taken. The zero value takes all.
type Filter struct {
	include, exclude *patternmatcher.PatternMatcher
	xattrs           bool // see Selection
}

// NewFilter makes a filter of patterns in .dockerignore's syntax, relative to
// the match: all that includes match, or all where there are none, but what
// excludes match.
func NewFilter(includes, excludes []string) (Filter, error) {
	var f Filter
	var err error
	if len(includes) > 0 {
		if f.include, err = patternmatcher.New(includes); err != nil {
			return f, fmt.Errorf("pattern %q: %w", includes, err)
		}
	}
	if len(excludes) > 0 {
		if f.exclude, err = patternmatcher.New(excludes); err != nil {
			return f, fmt.Errorf("--exclude %q: %w", excludes, err)
		}
	}
	return f, nil
}

// Item is one entry that is taken.
type Item struct {
	Rel   string // path below the match; "" for the match itself
	Entry tree.Entry
	// Leading: a directory taken because of what is in it; one that already
	// stands at the destination stays as it is.
	Leading bool
	// HardLink is the Rel of the first item with the same inode; "" for that
	// item, and for a file with one name.
	HardLink string
	Linked   bool // HardLink is set (it may be "", the match itself)
}

type walker struct {
	t       Tree
	lister  Lister // t, if it is one
	f       Filter
	root    string // of the match, with a slash at its end
	visit   func(Item) error
	inodes  map[uint64]string
	pending []Item // directories above that are taken if something in them is
}

type matchInfo struct{ in, ex patternmatcher.MatchInfo }

// Walk calls visit for what is taken of a match, directories before what is in
// them, names sorted.
func Walk(ctx context.Context, t Tree, m Match, f Filter, visit func(Item) error) error {
	w := walker{t: t, f: f, visit: visit, inodes: map[uint64]string{}, root: strings.TrimSuffix(m.Real, "/") + "/"}
	w.lister, _ = t.(Lister)
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := t.Lstat(m.Real)
	if err != nil {
		return err
	}
	return w.entry(ctx, e, "", decision{take: true})
}

// decision is what the filter says of a path.
type decision struct {
	take, excluded bool
	info           matchInfo
}

// skips reports whether nothing of what d is about, or is in it, is taken.
func (w *walker) skips(d decision) bool {
	return !d.take && w.f.include == nil && !w.f.exclude.Exclusions()
}

// descends reports whether something in a directory can be taken.
func (w *walker) descends(d decision) bool {
	return !d.excluded || w.f.exclude.Exclusions()
}

func (w *walker) decide(rel string, up matchInfo) (d decision, err error) {
	d.take = true
	if w.f.include != nil {
		if d.take, d.info.in, err = w.f.include.MatchesUsingParentResults(rel, up.in); err != nil {
			return d, err
		}
	}
	if w.f.exclude != nil {
		if d.excluded, d.info.ex, err = w.f.exclude.MatchesUsingParentResults(rel, up.ex); err != nil {
			return d, err
		}
	}
	d.take = d.take && !d.excluded
	return d, nil
}

func (w *walker) entry(ctx context.Context, e tree.Entry, rel string, d decision) error {
	for k := range e.Xattrs {
		// Of extended attributes only file capabilities are part of what is
		// copied, as in BuildKit's context transfer and its layers.
		if !w.f.xattrs && k != "security.capability" {
			delete(e.Xattrs, k)
		}
	}
	if !e.IsDir() {
		if !d.take {
			return nil
		}
		return w.emit(w.linked(Item{Rel: rel, Entry: e}))
	}
	held := len(w.pending)
	if d.take {
		if err := w.emit(Item{Rel: rel, Entry: e}); err != nil {
			return err
		}
		held = 0
	} else {
		w.pending = append(w.pending, Item{Rel: rel, Entry: e, Leading: true})
	}
	if w.descends(d) {
		if err := w.dir(ctx, e.Path, d.info); err != nil {
			return err
		}
	}
	if len(w.pending) > held {
		w.pending = w.pending[:held]
	}
	return nil
}

// dir walks what is in the directory p.
func (w *walker) dir(ctx context.Context, p string, up matchInfo) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	prefix := strings.TrimSuffix(p, "/") + "/"
	if w.lister != nil {
		l, err := w.lister.List(p)
		if err != nil {
			return err
		}
		return w.listed(ctx, l, prefix, up)
	}
	names, err := w.t.ReadDir(p)
	if err != nil {
		return err
	}
	for _, n := range names {
		child := prefix + n
		d, err := w.decide(child[len(w.root):], up)
		if err != nil {
			return err
		}
		if w.skips(d) {
			continue
		}
		e, err := w.t.Lstat(child)
		if isMissing(err) {
			continue // removed since its directory was read: a context is in use
		}
		if err == nil {
			err = w.entry(ctx, e, child[len(w.root):], d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// listed walks what is in the directory that prefix is, with a slash.
func (w *walker) listed(ctx context.Context, l Listing, prefix string, up matchInfo) error {
	var ahead []string
	for i := range l.Len() {
		if !l.IsDir(i) {
			continue
		}
		child := prefix + l.Name(i)
		d, err := w.decide(child[len(w.root):], up)
		if err != nil {
			return err
		}
		if !w.skips(d) && w.descends(d) {
			ahead = append(ahead, child)
		}
	}
	if len(ahead) > 1 {
		w.lister.Ahead(ahead)
	}
	for i := range l.Len() {
		e := l.Entry(i)
		rel := e.Path[len(w.root):]
		d, err := w.decide(rel, up)
		if err != nil {
			return err
		}
		if w.skips(d) {
			continue
		}
		if err := w.entry(ctx, e, rel, d); err != nil {
			return err
		}
	}
	return nil
}

// emit visits the directories that lead to it, then it.
func (w *walker) emit(it Item) error {
	for _, d := range w.pending {
		if err := w.visit(d); err != nil {
			return err
		}
	}
	w.pending = w.pending[:0]
	return w.visit(it)
}

func (w *walker) linked(it Item) Item {
	if it.Entry.Type() != unix.S_IFREG || it.Entry.Nlink < 2 {
		return it
	}
	first, ok := w.inodes[it.Entry.Ino]
	if !ok {
		w.inodes[it.Entry.Ino] = it.Rel
		return it
	}
	it.HardLink, it.Linked = first, true
	return it
}
