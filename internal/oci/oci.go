// Package oci holds the value types that all packages share.
//
// They are those of the OCI image and runtime specifications where these have
// one, and small structs of our own where they do not. Nothing here does I/O.
package oci

import (
	"context"
	"io"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
)

type (
	// Digest is "algorithm:hex". Blobs, manifests and diff IDs use sha256, as
	// OCI demands; keys and content digests of our own use blake3.
	Digest = digest.Digest
	// Descriptor names a blob by media type, digest and size.
	Descriptor = specs.Descriptor
	// Platform is operating system, architecture and variant.
	Platform = specs.Platform
	// Manifest is an image manifest.
	Manifest = specs.Manifest
	// Index is an image index.
	Index = specs.Index
	// History is one entry of an image's history.
	History = specs.History
	// Image is an image's configuration: the OCI one and Docker's additions
	// (HEALTHCHECK, ONBUILD, SHELL).
	Image = dockerspec.DockerOCIImage
	// Config is the part of Image that says how to run it.
	Config = dockerspec.DockerOCIImageConfig
	// Healthcheck is the test of a HEALTHCHECK instruction.
	Healthcheck = dockerspec.HealthcheckConfig
)

// Mount is one mount, in the terms of mount(8) and of the OCI runtime
// specification's mounts: an overlay, a bind, a tmpfs.
type Mount struct {
	Type    string   `json:"type"`             // "overlay", "bind", "tmpfs", "proc", …
	Source  string   `json:"source,omitempty"` // device, or the bound host path
	Target  string   `json:"target,omitempty"` // absolute, inside the root; empty for the root itself
	Options []string `json:"options,omitempty"`
	// Sub is the path of a directory or file in what is mounted; only that is
	// put at Target. Symbolic links in it are resolved inside. "": all of it.
	Sub string `json:"sub,omitempty"`
	// Data is the content of a mount of type "file": a file in memory, owned
	// and protected as the options "uid=", "gid=" and "mode=" say.
	Data []byte `json:"data,omitempty"`
}

// Layer is a handle on one layer of a root filesystem. It is a value: where
// its files are, or whether they have been downloaded at all, is the business
// of whoever opens it.
type Layer struct {
	// ID names the layer's snapshot in the state directory.
	ID string `json:"id"`
	// Content is the digest of what the layer changes, without modification
	// times. Of a pulled layer it is the diff ID.
	Content Digest `json:"content"`
	// DiffID is the sha256 of the uncompressed tar; empty while nobody has
	// asked for it.
	DiffID Digest `json:"diffID,omitempty"`
	// TarSize is the size of the uncompressed tar in bytes, set with DiffID; 0
	// where it is not known.
	TarSize int64 `json:"tarSize,omitempty"`
	// Blob is the compressed form that a registry has, of a pulled layer.
	Blob *Descriptor `json:"blob,omitempty"`
	// Origin is the image reference that Blob can be fetched from, or the URL
	// of a build cache that is in no registry, "cache+s3://…".
	Origin string `json:"origin,omitempty"`
	// Created is when the layer's step ended; the zero time of a pulled one.
	Created time.Time `json:"created,omitzero"`
	// Epoch, where it is set, is the latest modification time in the tar: files
	// with later ones have it there. DiffID and TarSize are of that tar.
	Epoch time.Time `json:"epoch,omitzero"`
	// Source is the ID of the layer that the tar is made of, where that is
	// another one: ID then stands for the tar unpacked.
	Source string `json:"source,omitempty"`
	// Imported is set on a layer that a build cache has named, which is no base
	// image's: where its bytes are not to be had, the step runs again.
	Imported bool `json:"imported,omitempty"`

	// Tar opens the uncompressed tar, always the same bytes. It is set on
	// layers that are handed to an exporter, and safe for concurrent calls.
	Tar func(context.Context) (io.ReadCloser, error) `json:"-"`
	// Compressed opens the bytes that Blob describes. It is nil where they
	// are not to be had.
	Compressed func(context.Context) (io.ReadCloser, error) `json:"-"`
}

// ChainID names the tree of a layer with the given diff ID upon the chain that
// is named parent, "" for none: the OCI image specification, config.md, "Layer
// ChainID".
func ChainID(parent, diffID Digest) Digest {
	if parent == "" {
		return diffID
	}
	return digest.FromString(parent.String() + " " + diffID.String())
}

// PlatformImage is a finished image for one platform.
type PlatformImage struct {
	Platform Platform
	Image    Image // RootFS.DiffIDs and history complete
	Layers   []Layer
	// Raw is the configuration's bytes where an image that came from elsewhere
	// must keep its ID; where it is nil, Image is encoded.
	Raw []byte
	// Annotations are the manifest's own, besides the Result's.
	Annotations map[string]string
	// Epoch is SOURCE_DATE_EPOCH, if there is one: the time of all files where
	// they are put out and no image.
	Epoch *time.Time
}

// Result is what a build yields and an exporter puts out.
type Result struct {
	Names       []Reference
	Images      []PlatformImage // one a platform, in the order asked for
	Index       bool            // an index, and a directory for each platform, though there be one image
	Annotations map[string]string
}
