package cache

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/blake3"

	"github.com/861fb494/build/internal/oci"
)

// format is the version word of the state directory; doc.go says what it covers.
const format = "build state 1\n"

// Store is the state directory, open in one process. It is safe for concurrent
// use, and any number of processes may have the same directory open.
type Store struct {
	dir    string
	driver Driver
	lease  *lease
	serial atomic.Uint64
	now    func() time.Time

	mu    sync.Mutex
	known map[string]oci.Layer // committed layers, as their metadata says
}

// Open opens the state directory dir, which is made if it is not there, and
// takes a lease in it. driver keeps the layers' files.
func Open(ctx context.Context, dir string, driver Driver) (*Store, error) {
	for _, d := range []string{"", "leases", "layers", "steps", "places", "locks", "results", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o711); err != nil {
			return nil, fmt.Errorf("open state directory: %w", err)
		}
	}
	if err := checkFormat(filepath.Join(dir, "format")); err != nil {
		return nil, err
	}
	s := &Store{dir: dir, driver: driver, now: time.Now, known: map[string]oci.Layer{}}
	var err error
	if s.lease, err = newLease(filepath.Join(dir, "leases")); err != nil {
		return nil, err
	}
	return s, nil
}

func checkFormat(path string) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return writeFile(path, []byte(format))
	}
	if err != nil {
		return fmt.Errorf("read state format: %w", err)
	}
	if string(b) != format && len(b) > 0 {
		return fmt.Errorf("%s is %q, this program writes %q: use another --root, or remove that directory",
			path, strings.TrimSpace(string(b)), strings.TrimSpace(format))
	}
	return nil
}

// Close ends the lease: what was prepared and not committed is removed.
func (s *Store) Close(ctx context.Context) error {
	s.abandon(ctx, s.lease.path)
	os.RemoveAll(s.tempDir())
	return s.lease.close()
}

// Group is the name of the cgroup that those of this state directory's steps
// are made in: what is left there is for its processes alone to judge.
func (s *Store) Group() string {
	sum := blake3.Sum256([]byte(s.dir))
	return "build-" + hex.EncodeToString(sum[:4])
}

// Dir is the state directory.
func (s *Store) Dir() string { return s.dir }

// Driver keeps the layers' files.
func (s *Store) Driver() Driver { return s.driver }

// Lease is the name of this process's lease; names of what a killed process may
// leave behind begin with it.
func (s *Store) Lease() string { return s.lease.name }

// Alive reports whether the process of the named lease still runs.
func (s *Store) Alive(name string) bool {
	return name == s.lease.name || leaseAlive(filepath.Join(s.dir, "leases", name))
}

func (s *Store) tempDir() string { return filepath.Join(s.dir, "tmp", s.lease.name) }

// TempDir is a directory for this process's temporary files. What is in it goes
// when the store is closed, or, after a crash, with the next Sweep.
func (s *Store) TempDir() (string, error) {
	d := s.tempDir()
	return d, os.MkdirAll(d, 0o700)
}

// newID names a layer that is built here.
func (s *Store) newID() string {
	return fmt.Sprintf("%s-%d", s.lease.name, s.serial.Add(1))
}

// Sweep removes what processes that were killed have left: layers they had
// prepared, their temporary files, their leases. It is quick where there is
// nothing to do.
func (s *Store) Sweep(ctx context.Context) error {
	names, err := os.ReadDir(filepath.Join(s.dir, "leases"))
	if err != nil {
		return fmt.Errorf("sweep state directory: %w", err)
	}
	for _, n := range names {
		name := strings.TrimSuffix(n.Name(), ".d")
		if name == s.lease.name || !leaseName(name) {
			continue
		}
		path := filepath.Join(s.dir, "leases", name)
		held, err := claimLease(path)
		if err != nil || held == nil {
			continue // alive, or another process sweeps it
		}
		s.abandon(ctx, path)
		os.RemoveAll(filepath.Join(s.dir, "tmp", name))
		os.Remove(path)
		held.Close()
	}
	return nil
}

// abandon removes the layers that the lease at path lists and that were never
// committed.
func (s *Store) abandon(ctx context.Context, path string) {
	drafts, err := os.ReadDir(path + ".d")
	if err != nil {
		return
	}
	for _, d := range drafts {
		id := d.Name()
		if _, err := s.readLayer(id); err == nil {
			os.Remove(filepath.Join(path+".d", id))
			continue
		}
		unlock, err := s.tryLock("layer-" + id)
		if err != nil {
			continue // somebody else is unpacking that layer now
		}
		if err := s.driver.Remove(ctx, id); err == nil {
			os.RemoveAll(s.layerDir(id))
			os.Remove(filepath.Join(path+".d", id))
		}
		unlock()
	}
	os.Remove(path + ".d")
}

// writeFile writes data under a temporary name in path's directory and renames
// it. It is not synced: every record is checked when it is read.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func randomName(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// leaseName tells leases from what else may lie in their directory.
func leaseName(s string) bool {
	if len(s) != 12 {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}
