// Package source pins and opens what comes from outside: images, git
// repositories, URLs, the user's directories.
package source

import (
	"context"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// Source is one scheme's way to the world.
type Source interface {
	// Pin gives s the digest of what it is now: a tag's manifest, a branch's
	// commit, the selected files' content.
	Pin(ctx context.Context, s llb.Source) (llb.Source, error)
	// Open is the content of a pinned source.
	Open(ctx context.Context, s llb.Source) (Content, error)
}

// Content is what a source holds; one of the fields is set.
type Content struct {
	// Layers of an image, lowest first. Opening their Compressed downloads.
	Layers []oci.Layer
	// Context is a directory of the user's, read in place. It stays the
	// source's, which closes it.
	Context *Context
	// Dir is a directory that the caller may keep or move, and must remove.
	Dir string
}
