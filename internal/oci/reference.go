package oci

import (
	"errors"
	"fmt"
	"strings"
)

// Reference is an image's name with a tag, a digest or both, normalised as
// Docker does: "node" is docker.io/library/node:latest.
type Reference struct {
	Domain string // "docker.io", "localhost:5000"
	Path   string // "library/node"
	Tag    string // "latest"; empty where only a digest was given
	Digest Digest // empty where only a tag was given
}

// What Docker makes of short names.
const (
	dockerDomain  = "docker.io"
	dockerIndex   = "index.docker.io" // its name of old
	dockerLibrary = "library/"        // where the official images are
	defaultTag    = "latest"
)

// Limits of a name's parts, in bytes.
const (
	maxPath = 255
	maxTag  = 128
)

var errFormat = errors.New("invalid reference format")

// ParseReference reads a name as a user writes it.
//
// The grammar is that of https://pkg.go.dev/github.com/distribution/reference,
// which the tests compare with: its regular expressions take a millisecond to
// compile whenever the program starts, and it starts for every step. Unlike
// there, what looks like a domain and is none is an error.
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("image name %q: %w", s, err)
	}
	return r, nil
}

func parseReference(s string) (Reference, error) {
	if len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" {
		return Reference{}, errors.New("64 hexadecimal digits are an image's ID, not a name")
	}
	domain, rest := splitDomain(s)
	if !isDomain(domain) {
		return Reference{}, errFormat
	}
	r := Reference{Domain: domain}
	rest, digest, hasDigest := strings.Cut(rest, "@")
	if hasDigest {
		r.Digest = Digest(digest)
		if err := r.Digest.Validate(); err != nil {
			return Reference{}, fmt.Errorf("%w: %w", errFormat, err)
		}
	}
	var hasTag bool
	r.Path, r.Tag, hasTag = strings.Cut(rest, ":")
	switch {
	case r.Path != strings.ToLower(r.Path):
		return Reference{}, fmt.Errorf("%w: repository name (%s) must be lowercase", errFormat, r.Path)
	case !isPath(r.Path), hasTag && !isTag(r.Tag):
		return Reference{}, errFormat
	case len(r.Path) > maxPath:
		return Reference{}, fmt.Errorf("%w: repository name is longer than %d bytes", errFormat, maxPath)
	case !hasTag && !hasDigest:
		r.Tag = defaultTag
	}
	return r, nil
}

// splitDomain takes the registry's domain off a name; the first element is one
// if it cannot be part of a path, or is "localhost".
func splitDomain(name string) (domain, rest string) {
	first, after, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		return dockerDomain, dockerLibrary + name
	case first == dockerIndex:
		domain, rest = dockerDomain, after
	case first == "localhost", strings.ContainsAny(first, ".:"), strings.ToLower(first) != first:
		domain, rest = first, after
	default:
		domain, rest = dockerDomain, name
	}
	if domain == dockerDomain && !strings.Contains(rest, "/") {
		rest = dockerLibrary + rest
	}
	return domain, rest
}

// isDomain reports whether s is a host name or an IP address, IPv6 in brackets,
// and perhaps a port.
func isDomain(s string) bool {
	host, port := s, "0"
	if end := strings.LastIndexByte(s, ']'); end >= 0 || strings.Contains(s, ":") {
		i := strings.IndexByte(s[end+1:], ':')
		if i >= 0 {
			host, port = s[:end+1+i], s[end+1+i+1:]
		}
	}
	if port == "" || strings.Trim(port, "0123456789") != "" {
		return false
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		return ok && inner != "" && strings.Trim(inner, "0123456789abcdefABCDEF:") == ""
	}
	for part := range strings.SplitSeq(host, ".") {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' {
			return false
		}
		for i := range len(part) {
			if !isWord(part[i]) && part[i] != '-' || part[i] == '_' {
				return false
			}
		}
	}
	return true
}

// isPath reports whether s is elements, divided by slashes, of lower-case
// letters and digits; between those may be one ".", one or two "_", or any
// number of "-".
func isPath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !isElement(part) {
			return false
		}
	}
	return true
}

func isElement(s string) bool {
	alnum := func(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }
	if s == "" || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		start := i
		for !alnum(s[i]) { // ends: the last one is
			i++
		}
		switch between := s[start:i]; {
		case between == "", between == ".", between == "_", between == "__":
		case strings.Trim(between, "-") == "":
		default:
			return false
		}
		i++
	}
	return true
}

func isTag(s string) bool {
	if s == "" || len(s) > maxTag || !isWord(s[0]) {
		return false
	}
	for i := range len(s) {
		if !isWord(s[i]) && s[i] != '.' && s[i] != '-' {
			return false
		}
	}
	return true
}

// isWord reports whether c is an ASCII letter, a digit or "_".
func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}

// Repository is the reference without tag and digest: "docker.io/library/node".
func (r Reference) Repository() string { return r.Domain + "/" + r.Path }

// String is the full form: "docker.io/library/node:latest@sha256:…".
func (r Reference) String() string { return r.suffixed(r.Repository()) }

// Familiar is the form that a user of Docker would write: "node:alpine".
func (r Reference) Familiar() string {
	if r.Domain != dockerDomain {
		return r.String()
	}
	if official, ok := strings.CutPrefix(r.Path, dockerLibrary); ok && !strings.Contains(official, "/") {
		return r.suffixed(official)
	}
	return r.suffixed(r.Path)
}

func (r Reference) suffixed(name string) string {
	if r.Tag != "" {
		name += ":" + r.Tag
	}
	if r.Digest != "" {
		name += "@" + r.Digest.String()
	}
	return name
}

// WithDigest is r pinned to d; the tag stays for people to read.
func (r Reference) WithDigest(d Digest) Reference {
	r.Digest = d
	return r
}
