package pick

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path"
	"slices"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/oci"
)

// Selection is what is hashed of a tree.
type Selection struct {
	Sources   []string // absolute paths
	Wildcards bool
	Parents   bool // sources as COPY --parents reads them
	Excludes  []string
	Owners    bool // owners count; not so for a context, whose files become root's
	Xattrs    bool // all extended attributes count, as for a mount; not so for a copy
	// List, if not nil, is told each entry that is hashed, with a sum of its own
	// that differs when anything that counts of it does.
	List func(e tree.Entry, sum string)
}

// Source is one source of a COPY, made ready.
type Source struct {
	Path   string
	Filter Filter
	// Required is a path that has to be there, of COPY --parents without
	// wildcards; "" for none.
	Required string
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
				out[i].Required = path.Join(base, pattern)
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
		// A link counts for itself, wherever it leads: it is copied as it is.
		at, err := t.Resolve(s.Required, false)
		if err != nil {
			return nil, err
		}
		if _, err := t.Quick(at); isMissing(err) {
			return nil, &NotFoundError{Path: s.Required}
		} else if err != nil {
			return nil, err
		}
	}
	return Matches(ctx, t, s.Path, wildcards)
}

// Digest hashes what s selects of t: names, types, modes, links, capabilities,
// contents; not times. content gives the digest of a regular file.
func Digest(ctx context.Context, t Tree, s Selection, content func(context.Context, tree.Entry) (oci.Digest, error)) (oci.Digest, error) {
	h := NewHasher(s.Owners)
	sources, err := s.Prepare()
	if err != nil {
		return "", err
	}
	for _, src := range sources {
		matches, err := src.Find(ctx, t, s.Wildcards)
		if err != nil {
			return "", err
		}
		h.Source(len(matches))
		for _, m := range matches {
			h.Begin(m)
			err := Walk(ctx, t, m, src.Filter, func(it Item) error {
				var d oci.Digest
				if it.Entry.Type() == unix.S_IFREG && !it.Linked {
					var err error
					if d, err = content(ctx, it.Entry); err != nil {
						return err
					}
				}
				h.Item(it, d)
				if s.List != nil {
					one := hasher{h: blake3.New()}
					one.item(it, d, s.Owners)
					s.List(it.Entry, one.sum().Encoded()[:16])
				}
				return nil
			})
			if err != nil {
				return "", err
			}
			h.End()
		}
	}
	return h.Sum(), nil
}

type hasher struct{ h *blake3.Hasher }

func (h hasher) number(n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	h.h.Write(b[:])
}

func (h hasher) text(s string) {
	h.number(uint64(len(s)))
	h.h.WriteString(s)
}

func (h hasher) item(it Item, content oci.Digest, owners bool) {
	e := it.Entry
	h.text("item")
	h.text(it.Rel)
	h.number(uint64(e.Mode))
	if owners {
		h.number(uint64(e.UID))
		h.number(uint64(e.GID))
	}
	h.number(uint64(e.Major)<<32 | uint64(e.Minor))
	h.text(e.Link)
	h.text(string(content))
	if it.Linked {
		h.text("link")
		h.text(it.HardLink)
	}
	if it.Leading {
		h.text("leading")
	}
	keys := make([]string, 0, len(e.Xattrs))
	for k := range e.Xattrs {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		h.text(k)
		h.text(e.Xattrs[k])
	}
}

func (h hasher) sum() oci.Digest {
	return oci.Digest("blake3:" + hex.EncodeToString(h.h.Sum(nil)))
}
