// Package exporter puts images out: to a registry, an OCI layout or tar, a
// Docker tar, a directory.
package exporter

import (
	"context"

	"github.com/861fb494/build/internal/oci"
)

// Exporter puts out one result.
type Exporter interface {
	// Layer is called as a layer's step ends, so that compressing and
	// uploading it overlaps with the build. It may do nothing. It is safe for
	// concurrent calls; a layer that then is in no result harms nothing.
	Layer(ctx context.Context, l oci.Layer) error
	// Export puts the result out, all of it or nothing under its name, and
	// returns what was written: of one platform the manifest, of several the
	// index.
	Export(ctx context.Context, r oci.Result) (oci.Descriptor, error)
	// Close releases what Layer began and Export did not use. It is called
	// always, once, last.
	Close() error
}
