package pick

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/ordered"
)

// Selection is what is hashed of a tree.
type Selection struct {
	Sources   []string // absolute paths
	Wildcards bool
	Parents   bool // sources as COPY --parents reads them
	Excludes  []string
	Owners    bool // owners count; not so for a context, whose files become root's
	Xattrs    bool // all extended attributes count, as for a mount; not so for a copy
	// List, if not nil, is told each entry that is hashed, in order, with a sum
	// of its own that differs when anything that counts of it does.
	List func(e *tree.Entry, sum Sum)
}

// Sum is what tells one file from another: some bytes of a blake3 digest.
type Sum [8]byte

// Content gives the digest of a regular file's content.
type Content func(ctx context.Context, e tree.Entry) (oci.Digest, error)

// Source is one source of a COPY, made ready.
type Source struct {
	Path   string
	Filter Filter
	// Required is a path of COPY --parents without wildcards: it, or something in
	// it, has to be taken. "" for none.
	Required string

	pattern string // what of Required is below Path
}

// Prepare reads the sources of a COPY: with parents, what follows "/./" (or
// all) is a pattern for paths that keep their directories.
func (s Selection) Prepare() ([]Source, error) {
	out := make([]Source, len(s.Sources))
	for i, src := range s.Sources {
		var includes []string
		if s.Parents {
			base, pattern := "/", src
			if at := indexPivot(src); at >= 0 {
				base, pattern = src[:at], src[at+3:]
				if base == "" {
					base = "/"
				}
			}
			pattern = path.Clean("/" + pattern)
			if pattern == "/" && base != "/" {
				return nil, fmt.Errorf("--parents: nothing follows \"/./\" in %q", s.Sources[i])
			}
			if !hasWildcards(base) && !hasWildcards(pattern) {
				out[i].Required, out[i].pattern = path.Join(base, pattern), pattern[1:]
			}
			if pattern != "/" {
				includes = []string{pattern[1:]}
			}
			src = base
		}
		f, err := NewFilter(includes, s.Excludes)
		if err != nil {
			return nil, err
		}
		f.xattrs = s.Xattrs
		out[i].Path, out[i].Filter = src, f
	}
	return out, nil
}

func indexPivot(s string) int {
	for i := 0; i+2 < len(s); i++ {
		if s[i] == '/' && s[i+1] == '.' && s[i+2] == '/' {
			return i
		}
	}
	return -1
}

// Find is Matches of a prepared source, with its required path looked for.
func (s Source) Find(ctx context.Context, t Tree, wildcards bool) ([]Match, error) {
	if s.Required != "" {
		if err := s.findRequired(ctx, t); isMissing(err) {
			return nil, &NotFoundError{Path: s.Required}
		} else if err != nil {
			return nil, err
		}
	}
	return Matches(ctx, t, s.Path, wildcards)
}

// findRequired is an error unless the filter takes the required path, or something
// in it. No link is followed on the way from the source to it: a walk would not
// come there.
func (s Source) findRequired(ctx context.Context, t Tree) error {
	at, err := t.Resolve(s.Path, false)
	if err != nil {
		return err
	}
	if s.pattern == "" {
		return &NotFoundError{s.Required, `--parents takes no whole tree; "*" is all that is in it`}
	}
	e, err := t.Quick(at)
	if err != nil {
		return err
	}
	w := walker{t: t, f: s.Filter, root: strings.TrimSuffix(at, "/") + "/", inodes: map[uint64]string{}}
	var d decision
	for name := range strings.SplitSeq(s.pattern, "/") {
		if e.Type() == unix.S_IFLNK {
			return &NotFoundError{s.Required, at + " is a symbolic link, which --parents does not follow"}
		}
		at = path.Join(at, name)
		if e, err = t.Quick(at); err != nil {
			return err
		}
		if d, err = w.decide(at[len(w.root):], d.info); err != nil {
			return err
		}
	}
	taken := d.take
	if !taken && e.IsDir() && w.descends(d) {
		w.visit = func(Item) error { taken = true; return fs.SkipAll }
		if err := w.dir(ctx, at, d.info); err != nil && err != fs.SkipAll {
			return err
		}
	}
	if !taken {
		return &NotFoundError{s.Required, "--exclude leaves nothing of it"}
	}
	if path.Dir(at) == "/" {
		// BuildKit looks through a link that lies in the tree's root, and through
		// no other: one that leads nowhere is not found there.
		if at, err = t.Resolve(at, true); err == nil {
			_, err = t.Quick(at)
		}
	}
	return err
}

// Digest hashes what s selects of t: names, types, modes, links, capabilities,
// contents; not times. content gives the digest of a regular file; it is called
// by several goroutines at once.
func Digest(ctx context.Context, t Tree, s Selection, content Content) (oci.Digest, error) {
	sources, err := s.Prepare()
	if err != nil {
		return "", err
	}
	h := NewHasher(s.Owners)
	steps := ordered.New(ctx, ordered.Options[step]{
		Work: func(ctx context.Context, batch []step) error { return readAll(ctx, batch, content) },
		Take: func(st *step) { st.hash(h, s.List) },
		Cost: (*step).cost, Batch: 64, MaxCost: 1 << 20,
	})
	defer steps.Close()
	if err := addAll(ctx, steps, t, s, sources); err != nil {
		return "", err
	}
	if err := steps.Drain(); err != nil {
		return "", err
	}
	return h.Sum(), nil
}

// step is a call of a Hasher.
type step struct {
	kind    int
	matches int
	match   Match
	item    Item
	content oci.Digest
}

const (
	stepSource = iota
	stepBegin
	stepItem
	stepEnd
)

func addAll(ctx context.Context, steps *ordered.Pipeline[step], t Tree, s Selection, sources []Source) error {
	for _, src := range sources {
		matches, err := src.Find(ctx, t, s.Wildcards)
		if err != nil {
			return err
		}
		if err := steps.Add(step{kind: stepSource, matches: len(matches)}); err != nil {
			return err
		}
		for _, m := range matches {
			if err := steps.Add(step{kind: stepBegin, match: m}); err != nil {
				return err
			}
			err := Walk(ctx, t, m, src.Filter, func(it Item) error { return steps.Add(step{kind: stepItem, item: it}) })
			if err != nil {
				return err
			}
			if err := steps.Add(step{kind: stepEnd}); err != nil {
				return err
			}
		}
	}
	return nil
}

// reads reports whether the content of a file counts.
func (s *step) reads() bool {
	return s.kind == stepItem && s.item.Entry.Type() == unix.S_IFREG && !s.item.Linked
}

func (s *step) cost() int64 {
	if s.reads() {
		return s.item.Entry.Size
	}
	return 0
}

func readAll(ctx context.Context, batch []step, content Content) (err error) {
	for i := range batch {
		if s := &batch[i]; s.reads() {
			if s.content, err = content(ctx, s.item.Entry); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *step) hash(h *Hasher, list func(*tree.Entry, Sum)) {
	switch s.kind {
	case stepSource:
		h.Source(s.matches)
	case stepBegin:
		h.Begin(s.match)
	case stepItem:
		text := h.item(&s.item, s.content)
		if list != nil {
			sum := blake.Sum256(text)
			list(&s.item.Entry, Sum(sum[:8]))
		}
	case stepEnd:
		h.End()
	}
}

// hasher adds up blake3 over what it is given. Its buffer holds what has not
// been hashed yet.
type hasher struct {
	h   *blake3.Hasher
	buf []byte
}

func (h *hasher) flush() {
	h.h.Write(h.buf)
	h.buf = h.buf[:0]
}

func appendText[T ~string](b []byte, s T) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

// appendItem appends all that counts of an item.
func appendItem(b []byte, it *Item, content oci.Digest, owners bool) []byte {
	e := &it.Entry
	b = appendText(b, "item")
	b = appendText(b, it.Rel)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Mode))
	if owners {
		b = binary.LittleEndian.AppendUint64(b, uint64(e.UID))
		b = binary.LittleEndian.AppendUint64(b, uint64(e.GID))
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Major)<<32|uint64(e.Minor))
	b = appendText(b, e.Link)
	b = appendText(b, content)
	if it.Linked {
		b = appendText(b, "link")
		b = appendText(b, it.HardLink)
	}
	if it.Leading {
		b = appendText(b, "leading")
	}
	if len(e.Xattrs) == 0 {
		return b
	}
	for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
		b = appendText(b, k)
		b = appendText(b, e.Xattrs[k])
	}
	return b
}
