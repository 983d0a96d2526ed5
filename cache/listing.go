package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/861fb494/build/internal/oci"
)

// Listed is one of the files that a digest was made of.
type Listed struct {
	Path    string
	Sum     [8]byte   // of all that counts of the file
	ModTime time.Time // does not count; for people
}

// listingFormat begins a listing. Of each file there is how many bytes its path
// has in common with that of the file before it, the length of the rest, the rest,
// the sum, and the seconds of its time since those of the file before it; numbers
// are varints.
const listingFormat = "build listing 2\n"

func (s *Store) listingPath(of oci.Digest) string {
	return filepath.Join(s.dir, "listings", of.Encoded())
}

// HasListing reports whether PutListing has kept what the digest of was made of.
func (s *Store) HasListing(of oci.Digest) bool {
	_, err := os.Lstat(s.listingPath(of))
	return err == nil
}

// ListingWriter is a listing in the making. It takes some 20 bytes a file.
type ListingWriter struct {
	full [][]byte // parts, which need not be copied to grow
	now  []byte

	// Of the file before.
	path string
	time int64
}

// listingPart is about how long a part of a listing gets, in bytes.
const listingPart = 32 << 10

// Add adds a file.
func (w *ListingWriter) Add(f Listed) {
	if len(w.now) >= listingPart {
		w.full = append(w.full, w.now)
		w.now = make([]byte, 0, listingPart+listingPart/8)
	}
	shared := 0
	for shared < min(len(w.path), len(f.Path)) && w.path[shared] == f.Path[shared] {
		shared++
	}
	w.now = binary.AppendUvarint(w.now, uint64(shared))
	w.now = binary.AppendUvarint(w.now, uint64(len(f.Path)-shared))
	w.now = append(append(w.now, f.Path[shared:]...), f.Sum[:]...)
	at := f.ModTime.Unix()
	w.now = binary.AppendVarint(w.now, at-w.time)
	w.path, w.time = f.Path, at
}

func (w *ListingWriter) write(to io.Writer) error {
	s := newSealed(to)
	if _, err := io.WriteString(s, listingFormat); err != nil {
		return err
	}
	for _, part := range w.full {
		if _, err := s.Write(part); err != nil {
			return err
		}
	}
	if _, err := s.Write(w.now); err != nil {
		return err
	}
	return s.seal()
}

// PutListing keeps what the digest of was made of, so that a later build can say
// which file is another. It costs nothing where that is kept already; of no files
// nothing is kept.
func (s *Store) PutListing(of oci.Digest, w *ListingWriter) error {
	if len(w.now) == 0 || s.HasListing(of) {
		return nil
	}
	path := s.listingPath(of)
	return inDir(path, func() error { return s.writeFileBy(path, w.write) })
}

// Listing is a listing that was kept.
type Listing struct{ data []byte }

// Files goes through the files in the order in which they were added.
func (l *Listing) Files() *ListedFile { return &ListedFile{rest: l.data} }

// ListedFile is one file of a listing after the other, without memory of its own
// for each: most are like those that they are compared with, and not kept.
type ListedFile struct {
	Path []byte  // till Next is called
	Sum  [8]byte // of all that counts of the file
	time int64
	rest []byte
}

// ModTime is the file's modification time, in whole seconds.
func (f *ListedFile) ModTime() time.Time { return time.Unix(f.time, 0) }

// Next goes to the first file, or the next. It is false after the last one.
func (f *ListedFile) Next() bool {
	shared, b, ok := cutNumber(f.rest)
	if !ok || shared > uint64(len(f.Path)) {
		return false
	}
	name, b, ok := cutText(b)
	if !ok || len(b) < len(f.Sum) {
		return false
	}
	later, size := binary.Varint(b[len(f.Sum):])
	if size <= 0 {
		return false
	}
	f.Path = append(f.Path[:shared], name...)
	f.time += later
	f.rest = b[copy(f.Sum[:], b)+size:]
	return true
}

// Listing is what PutListing kept. None, or one that is damaged, is an error; a
// damaged one is removed.
func (s *Store) Listing(of oci.Digest) (*Listing, error) {
	l, err := s.readListing(of)
	var damaged *DamagedError
	if errors.As(err, &damaged) {
		os.Remove(s.listingPath(of))
	}
	return l, err
}

func (s *Store) readListing(of oci.Digest) (*Listing, error) {
	b, err := os.ReadFile(s.listingPath(of))
	if err != nil {
		return nil, err
	}
	text, err := openRecord(b)
	if err != nil {
		return nil, &DamagedError{What: s.listingPath(of), Err: err}
	}
	data, ok := bytes.CutPrefix(text, []byte(listingFormat))
	if !ok {
		return nil, &DamagedError{What: s.listingPath(of), Err: errors.New("another format")}
	}
	l := &Listing{data}
	f := l.Files()
	for f.Next() {
	}
	if len(f.rest) > 0 {
		return nil, &DamagedError{What: s.listingPath(of), Err: errors.New("a file is cut")}
	}
	return l, nil
}
