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

	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
)

// format is the version word of the state directory; doc.go says what it covers.
const format = "build state 1"

// Store is the state directory, open in one process. It is safe for concurrent
// use, and any number of processes may have the same directory open.
type Store struct {
	dir    string
	driver Driver
	lease  *lease
	serial atomic.Uint64
	now    func() time.Time
	boot   string // this run of the kernel; "" where it does not say

	mu     sync.Mutex
	known  map[string]oci.Layer // committed layers, as their metadata says
	used   map[string]bool      // layers that are marked as used
	intact map[string]bool      // layers whose files have been looked at
	fresh  map[string]bool      // layers made by this process
	unused []*freeLock          // see tryLock
	closed bool                 // no lock is kept for reuse any more
}

// Open opens the state directory dir, which is made if it is not there, and
// takes a lease in it. driver keeps the layers' files.
func Open(ctx context.Context, dir string, driver Driver) (*Store, error) {
	_, err := os.Lstat(filepath.Join(dir, "leases"))
	ours := err == nil
	for _, d := range []string{"", "leases", "layers", "steps", "places", "locks", "results", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o711); err != nil {
			return nil, fmt.Errorf("open state directory: %w", err)
		}
	}
	s := &Store{dir: dir, driver: driver, now: time.Now, boot: bootID(), known: map[string]oci.Layer{}, used: map[string]bool{}, intact: map[string]bool{}, fresh: map[string]bool{}}
	if s.lease, err = newLease(filepath.Join(dir, "leases")); err != nil {
		return nil, err
	}
	if err := s.checkFormat(ours); err != nil {
		s.lease.close()
		return nil, err
	}
	return s, nil
}

// checkFormat refuses a directory of another version, and one that is not ours
// and has a file of that name. In one of ours a file without its checksum is
// damaged, and written anew.
func (s *Store) checkFormat(ours bool) error {
	path := filepath.Join(s.dir, "format")
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read state format: %w", err)
	}
	word, err := openRecord(b)
	switch {
	case err == nil && string(word) == format:
		return nil
	case err != nil && (ours || len(b) == 0): // empty after a power cut
		return s.writeFile(path, sealRecord([]byte(format)))
	case err != nil:
		word = b
	}
	return otherFormat(path, word)
}

func otherFormat(path string, word []byte) error {
	return fmt.Errorf("%s is %q, this program writes %q: use another --root, or remove that directory",
		path, strings.TrimSpace(string(word)), format)
}

// CheckVersion refuses a state directory of another version, as Open does, for who
// uses what else is in it.
func CheckVersion(dir string) error {
	path := filepath.Join(dir, "format")
	b, err := os.ReadFile(path)
	if err != nil {
		return nil // new, or of a user who may read images and no more
	}
	if word, err := openRecord(b); err == nil && string(word) != format {
		return otherFormat(path, word)
	}
	return nil
}

// Close ends the lease: what was prepared and not committed is removed.
func (s *Store) Close(ctx context.Context) error {
	if w, ok := s.driver.(interface{ Wait() }); ok {
		w.Wait() // for what it does in the background
	}
	s.abandon(ctx, s.lease.path)
	s.dropLocks()
	os.RemoveAll(s.tempDir())
	return s.lease.close()
}

// Warm is a hint that a layer is about to be prepared: what can be made for it
// before more is known, is made in the background.
func (s *Store) Warm() {
	if w, ok := s.driver.(interface{ Warm() }); ok {
		w.Warm()
	}
}

// Group is the name of the cgroup that those of this state directory's steps
// are made in: what is left there is for its processes alone to judge.
func (s *Store) Group() string {
	sum := blake.Sum256([]byte(s.dir))
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

// bootID names this run of the kernel: random(4).
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
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

// shortHash names a file after a text that cannot be one.
func shortHash(text string) string {
	sum := blake.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}
