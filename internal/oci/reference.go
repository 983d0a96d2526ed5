package oci

import (
	"fmt"

	"github.com/distribution/reference"
)

// Reference is an image's name with a tag, a digest or both, normalised as
// Docker does: "node" is docker.io/library/node:latest.
type Reference struct {
	Domain string // "docker.io", "localhost:5000"
	Path   string // "library/node"
	Tag    string // "latest"; empty where only a digest was given
	Digest Digest // empty where only a tag was given
}

// ParseReference reads a name as a user writes it.
// Grammar: https://pkg.go.dev/github.com/distribution/reference.
func ParseReference(s string) (Reference, error) {
	n, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fmt.Errorf("image name %q: %w", s, err)
	}
	r := Reference{Domain: reference.Domain(n), Path: reference.Path(n)}
	if d, ok := n.(reference.Digested); ok {
		r.Digest = d.Digest()
	}
	if t, ok := n.(reference.Tagged); ok {
		r.Tag = t.Tag()
	} else if r.Digest == "" {
		r.Tag = "latest"
	}
	return r, nil
}

// Repository is the reference without tag and digest: "docker.io/library/node".
func (r Reference) Repository() string { return r.Domain + "/" + r.Path }

// String is the full form: "docker.io/library/node:latest@sha256:…".
func (r Reference) String() string {
	s := r.Repository()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// Familiar is the form that a user of Docker would write: "node:alpine".
func (r Reference) Familiar() string {
	n, err := reference.ParseNormalizedNamed(r.String())
	if err != nil {
		return r.String()
	}
	return reference.FamiliarString(n)
}

// WithDigest is r pinned to d; the tag stays for people to read.
func (r Reference) WithDigest(d Digest) Reference {
	r.Digest = d
	return r
}
