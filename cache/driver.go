package cache

import (
	"context"
	"iter"

	"github.com/861fb494/build/cache/tree"
)

// Driver stores the trees of snapshots. A snapshot is one layer's changes; a
// chain is the IDs of layers, lowest first. overlay.Driver and plain.Driver
// implement it, and drivertest holds both to the same contract.
//
// A Driver that never writes to the files of a committed layer, so that another
// layer may have hard links to them, also has HardLinks() bool, and says true.
//
// IDs are names of files: letters, digits, "-" and "_".
type Driver interface {
	// Prepare begins layer id upon chain. Nothing is mounted: Snapshot says
	// how the root could be mounted, and its Tree can be written to without.
	Prepare(ctx context.Context, id string, chain []string) (Snapshot, error)
	// View is chain to be read. Its Tree cannot be written to.
	View(ctx context.Context, chain []string) (Snapshot, error)
	// Changes lists what the prepared layer id changes, against the chain it
	// was prepared on: sorted, entries equal to the lower ones left out, removed
	// directories as one entry, opaque directories resolved into removals.
	// Digests are not filled in. Nothing may be writing to the layer.
	Changes(ctx context.Context, id string) iter.Seq2[tree.Change, error]
	// Made is the directory that holds the files of the prepared layer id under
	// their paths, until it is committed.
	Made(id string) (string, error)
	// Commit makes the prepared layer usable in chains.
	Commit(ctx context.Context, id string) error
	// Remove deletes a layer, prepared or committed. One that is not there is
	// no error.
	Remove(ctx context.Context, id string) error
	// Dir is the directory that holds the files of committed layer id under
	// their paths: those of its changes, perhaps others too.
	Dir(id string) string
}

// Snapshot is a tree of a Driver. It is declared in tree, since the drivers do
// not import this package.
type Snapshot = tree.Snapshot
