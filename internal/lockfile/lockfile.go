// Package lockfile is the form of Dockerfile.lock: what each tag, URL and branch
// that a Dockerfile names was when it was locked.
//
// A file is lines of UTF-8 text. "#" begins a comment, which is not kept when the
// file is written anew; empty lines are skipped, and CRLF ends a line as LF does.
// The first line besides is the version word,
//
//	build lock 1
//
// and each other one an entry or belongs to the entry above it:
//
//	image NAME DIGEST
//	  PLATFORM DIGEST
//	url URL DIGEST
//	git REMOTE REF COMMIT [tag OBJECT]
//
// Fields are divided by spaces. NAME is an image's full name with its tag, DIGEST
// that of its index, or of its manifest where it has no index; below stands, for
// people, the manifest that a platform gets of it. URL and REMOTE have no
// password. The DIGEST of a URL is its content's SHA-256. REF is as the Dockerfile
// has it, HEAD being the default branch; OBJECT is that of an annotated tag. What
// would not be one field otherwise stands in double quotes, escaped as in Go.
//
// Entries are written in this order of kinds, then by name and ref, platforms by
// name; they are read in any. One that stands twice, or anything else, is an
// error: whoever reads such a file cannot tell what its writer meant.
package lockfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/861fb494/build/internal/oci"
)

// Kind is what an entry is of.
type Kind string

// The kinds.
const (
	Image Kind = "image"
	URL   Kind = "url"
	Git   Kind = "git"
)

// Key is what an entry is found by.
type Key struct {
	Kind Kind
	Name string // "docker.io/library/node:alpine"; a URL or a remote without a password
	Ref  string // of a Git
}

// String is the key for people: "node:alpine", "https://example.com/x.git#main".
func (k Key) String() string {
	switch k.Kind {
	case Image:
		if r, err := oci.ParseReference(k.Name); err == nil {
			return r.Familiar()
		}
	case Git:
		if k.Ref != HEAD {
			return k.Name + "#" + k.Ref
		}
	}
	return k.Name
}

// Is reports whether a user who writes name means k: an image, with its tag or
// without, a URL, or a repository, with "#REF" or without.
func (k Key) Is(name string) bool {
	if name == k.String() || name == k.Name || k.Kind == Git && name == k.Name+"#"+k.Ref {
		return true
	}
	if k.Kind != Image {
		return false
	}
	want, err := oci.ParseReference(name)
	if err != nil {
		return false
	}
	has, err := oci.ParseReference(k.Name)
	if err != nil || want.Repository() != has.Repository() || want.Digest != "" {
		return false
	}
	return want.Tag == has.Tag || !strings.HasSuffix(name, ":"+want.Tag)
}

// HEAD is the Ref of a default branch.
const HEAD = "HEAD"

// Entry is what is locked.
type Entry struct {
	Key
	// Digest is an index's or a manifest's, or the SHA-256 of what a URL yields;
	// empty for a Git.
	Digest oci.Digest
	// Platforms are the manifests that platforms, such as "linux/arm64", get of
	// an image.
	Platforms map[string]oci.Digest
	// Commit of a Git, in hexadecimal; Tag is an annotated tag's object, or empty.
	Commit, Tag string
}

// Value is what the entry says without its key: a digest or a commit.
func (e Entry) Value() string { return cmp.Or(string(e.Digest), e.Commit) }

// File is the entries by their keys.
type File map[Key]Entry

// MaxSize is what Parse reads at most, in bytes. An entry has some hundreds.
const MaxSize = 4 << 20

// ErrVersion is a file that another version of the program has written.
var ErrVersion = errors.New("it is of another version of the format")

const (
	word    = "build lock"
	version = "1"
)

// Error is a file that cannot be read.
type Error struct {
	Line int // from 1; 0: the file as a whole
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Parse reads a file. Its errors are *Error.
func Parse(data []byte) (File, error) {
	if len(data) > MaxSize {
		return nil, &Error{Err: fmt.Errorf("it is larger than %d bytes", MaxSize)}
	}
	f := File{}
	var p parser
	n := 0
	for line := range bytes.Lines(data) {
		n++
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if err := p.line(string(line), f); err != nil {
			return nil, &Error{Line: n, Err: err}
		}
	}
	if !p.begun {
		return nil, &Error{Err: fmt.Errorf("the line %q is missing", word+" "+version)}
	}
	return f, nil
}

// parser is what has been read so far.
type parser struct {
	begun bool
	last  *Entry // an image that platforms may follow
}

func (p *parser) line(line string, f File) error {
	text := strings.Trim(line, " \t")
	if text == "" || text[0] == '#' {
		return nil
	}
	if !p.begun {
		v, ok := strings.CutPrefix(text, word+" ")
		if !ok {
			return fmt.Errorf("%.40q is not how a lock file begins: want %q", text, word+" "+version)
		}
		if v != version {
			return fmt.Errorf("%w, %.20q: this program knows %s", ErrVersion, v, version)
		}
		p.begun = true
		return nil
	}
	fields, err := split(text)
	if err != nil {
		return err
	}
	if line[0] == ' ' || line[0] == '\t' {
		if p.last == nil {
			return errors.New("a platform belongs below an image")
		}
		return p.last.platform(fields)
	}
	e, err := entry(fields)
	if err != nil {
		return err
	}
	if _, again := f[e.Key]; again {
		return fmt.Errorf("%s %s stands here again", e.Kind, quote(e.Key.String()))
	}
	f[e.Key], p.last = e, nil
	if e.Kind == Image {
		p.last = &e
	}
	return nil
}

// entry reads a line that begins one.
func entry(fields []string) (Entry, error) {
	e := Entry{Key: Key{Kind: Kind(fields[0])}}
	var want string
	switch e.Kind {
	case Image:
		want = "NAME DIGEST"
		e.Platforms = map[string]oci.Digest{}
	case URL:
		want = "URL DIGEST"
	case Git:
		want = "REMOTE REF COMMIT [tag OBJECT]"
	default:
		return e, fmt.Errorf("%.40q is no kind of entry: want image, url or git", fields[0])
	}
	if n := len(fields); e.Kind == Git && n != 4 && n != 6 || e.Kind != Git && n != 3 {
		return e, fmt.Errorf("want %s %s", e.Kind, want)
	}
	e.Name = fields[1]
	if e.Name == "" {
		return e, fmt.Errorf("the name is empty: want %s %s", e.Kind, want)
	}
	switch e.Kind {
	case Git:
		e.Ref, e.Commit = fields[2], fields[3]
		if e.Ref == "" {
			return e, fmt.Errorf("the ref is empty: want %s for the default branch", HEAD)
		}
		if len(fields) == 6 {
			if e.Tag = fields[5]; fields[4] != "tag" || !isHash(e.Tag) {
				return e, fmt.Errorf("want tag and its object's hash behind the commit")
			}
		}
		if !isHash(e.Commit) {
			return e, fmt.Errorf("commit %.80q: want 40 or 64 hexadecimal digits", e.Commit)
		}
		return e, nil
	case Image:
		r, err := oci.ParseReference(e.Name)
		if err != nil {
			return e, err
		}
		if r.Digest != "" || r.String() != e.Name {
			r.Digest = ""
			return e, fmt.Errorf("image %.80q: want its full name and tag, as in %q", e.Name, r)
		}
	}
	var err error
	e.Digest, err = digest(fields[2])
	return e, err
}

// platform reads a line below an image's.
func (e *Entry) platform(fields []string) error {
	if len(fields) != 2 {
		return errors.New("want PLATFORM DIGEST")
	}
	name := fields[0]
	if n := strings.Count(name, "/"); n < 1 || n > 2 || strings.ContainsFunc(name, func(r rune) bool { return !isPlatform(r) }) {
		return fmt.Errorf("platform %.80q: want OS/ARCH[/VARIANT]", name)
	}
	if _, again := e.Platforms[name]; again {
		return fmt.Errorf("%s stands here again", name)
	}
	d, err := digest(fields[1])
	if err != nil {
		return err
	}
	e.Platforms[name] = d
	return nil
}

// isPlatform reports what may be in a platform's name, such as
// "windows(10.0.17763)/amd64".
func isPlatform(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("/._-()+", r)
}

func digest(s string) (oci.Digest, error) {
	d := oci.Digest(s)
	if err := d.Validate(); err != nil || !strings.HasPrefix(s, "sha256:") {
		return "", fmt.Errorf("digest %.80q: want sha256: and 64 hexadecimal digits", s)
	}
	return d, nil
}

// isHash reports a full hash of git's, of SHA-1 or SHA-256.
func isHash(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

// split divides a line, which is not empty.
func split(s string) ([]string, error) {
	var fields []string
	for s != "" {
		word, rest, _ := strings.Cut(s, " ")
		if s[0] == '"' {
			quoted, err := strconv.QuotedPrefix(s)
			if err != nil {
				return nil, errors.New("a quotation mark is missing")
			}
			if rest = s[len(quoted):]; rest != "" && rest[0] != ' ' {
				return nil, errors.New("want a space behind what is quoted")
			}
			if word, err = strconv.Unquote(quoted); err != nil {
				return nil, err
			}
		} else if quote(word) != word {
			return nil, fmt.Errorf("%.80q: want it in quotation marks", word)
		}
		fields = append(fields, word)
		s = strings.TrimLeft(rest, " ")
	}
	return fields, nil
}

// quote is s as one field.
func quote(s string) string {
	plain := s != "" && s[0] != '#' && !strings.ContainsFunc(s, func(r rune) bool {
		return r == '"' || r == unicode.ReplacementChar || !unicode.IsPrint(r) || unicode.IsSpace(r)
	})
	if plain {
		return s
	}
	return strconv.Quote(s)
}

// Sorted is the entries in the order in which they stand in a file.
func (f File) Sorted() []Entry {
	return slices.SortedFunc(maps.Values(f), func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Kind.rank(), b.Kind.rank()), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Ref, b.Ref))
	})
}

// rank is a kind's place in a file.
func (k Kind) rank() int {
	switch k {
	case Image:
		return 0
	case URL:
		return 1
	}
	return 2
}

// Format writes a file: the same entries, the same bytes.
func (f File) Format() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Written by 'build lock'; 'build --locked' builds from it.\n%s %s\n", word, version)
	var kind Kind
	for _, e := range f.Sorted() {
		if e.Kind != kind {
			kind = e.Kind
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s %s", e.Kind, quote(e.Name))
		if e.Kind == Git {
			fmt.Fprintf(&b, " %s", quote(e.Ref))
		}
		fmt.Fprintf(&b, " %s", e.Value())
		if e.Tag != "" {
			fmt.Fprintf(&b, " tag %s", e.Tag)
		}
		b.WriteByte('\n')
		for _, p := range slices.Sorted(maps.Keys(e.Platforms)) {
			fmt.Fprintf(&b, "  %s %s\n", p, e.Platforms[p])
		}
	}
	return b.Bytes()
}
