// Package image is the store of images: an OCI image layout in one directory,
// shared by many processes without a daemon.
//
// # Directory
//
//	oci-layout            {"imageLayoutVersion":"1.0.0"}
//	index.json            the images: one descriptor for each name
//	blobs/sha256/<hex>    manifests, indexes, configurations, pulled layers
//	records/compressed/   what layers built here are once compressed
//	records/origin/       repositories that hold a blob
//	records/index         the same as index.json, for when that is damaged
//	ingest/               what is being written: empty, as it has no name yet
//	lock                  flock(2): see below
//
// A layer built here is listed in its manifest as an uncompressed tar whose
// digest is its diff ID, and its blob is absent, as the image layout
// specification permits; save and push make compressed layers from the
// snapshot. Blobs of pulled and loaded layers are kept.
//
// # Names
//
// Each name is one descriptor in index.json. Its annotations
// org.opencontainers.image.ref.name and io.containerd.image.name hold the full
// reference, so that
//
//	skopeo inspect --config oci:DIR:docker.io/library/node:alpine
//	skopeo inspect --config oci:DIR:localhost/app:latest
//
// read the images "node:alpine" and "localhost/app". A descriptor without
// these annotations is an image that has an ID but no name.
//
// # Records
//
// A record is followed by a line with the sha256 of what is before it. One that
// does not fit it is as good as none.
//
// # Commits, and who may delete
//
// A blob is written to ingest/, synced and named: under its digest there is
// the whole of it or nothing. index.json is rewritten the same way while the
// lock is held exclusively, so writers follow each other and readers need no
// lock. Only Prune deletes blobs. It holds the lock exclusively and spares
// those written or renewed within its grace time; a writer that finds its blob
// already there renews the blob's time under a shared lock.
package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/flock"
	"github.com/861fb494/build/internal/oci"
)

// Annotations of a named descriptor in index.json; both hold the full
// reference.
const (
	AnnotationRefName       = specs.AnnotationRefName
	AnnotationContainerName = "io.containerd.image.name"
)

var (
	// ErrNotFound is wrapped by errors about a name or blob that is not in the
	// store.
	ErrNotFound = errors.New("not found")
	// ErrDamaged is wrapped by errors about a blob or an index.json whose bytes
	// are not what they should be.
	ErrDamaged = errors.New("damaged")
)

// Store is an image store. It is safe for concurrent use, in this process and
// by other processes.
type Store struct {
	dir string
	now func() time.Time

	swept   sync.Once    // sweepDrafts, before the first draft
	keeping atomic.Bool  // what is found to be damaged stays: it is a Check that reads
	mu      sync.RWMutex // the threads of this process wait here, not in flock
}

// Open opens the store in dir and makes it if it is not there.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, now: time.Now}
	if s.layout() == nil {
		return s, nil
	}
	// Private images are not for all users of the machine.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make image store: %w", err)
	}
	if err := os.MkdirAll(s.blobDir(), 0o755); err != nil {
		return nil, fmt.Errorf("make image store: %w", err)
	}
	if err := s.lock(func() error {
		if _, err := os.Stat(s.indexPath()); errors.Is(err, os.ErrNotExist) {
			if err := s.writeIndex(&oci.Index{}); err != nil {
				return err
			}
		}
		// The layout file comes last: where it is, the rest is.
		return s.writeLayout()
	}); err != nil {
		return nil, fmt.Errorf("make image store: %w", err)
	}
	return s, nil
}

// Dir is the directory of the store, an OCI image layout.
func (s *Store) Dir() string { return s.dir }

func (s *Store) blobDir() string   { return filepath.Join(s.dir, specs.ImageBlobsDir, "sha256") }
func (s *Store) indexPath() string { return filepath.Join(s.dir, specs.ImageIndexFile) }

// lock runs f while no other process changes the index or deletes blobs.
func (s *Store) lock(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flock(flock.Alone, f)
}

// rlock runs f while no other process deletes blobs.
func (s *Store) rlock(f func() error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.flock(flock.Shared, f)
}

func (s *Store) flock(take func(*os.File) error, f func() error) error {
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close() // releases it
	if err := take(lock); err != nil {
		return err
	}
	return f()
}
