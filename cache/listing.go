package cache

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/861fb494/build/internal/oci"
)

// Listed is one of the files that a digest was made of.
type Listed struct {
	Path    string
	Sum     [8]byte   // of all that counts of the file
	ModTime time.Time // does not count; for people
}

const listingFormat = "build listing 1"

func (s *Store) listingPath(of oci.Digest) string {
	return filepath.Join(s.dir, "listings", of.Encoded())
}

// HasListing reports whether PutListing has kept what the digest of was made of.
func (s *Store) HasListing(of oci.Digest) bool {
	_, err := os.Lstat(s.listingPath(of))
	return err == nil
}

// ListingWriter is a listing in the making.
type ListingWriter struct{ b []byte }

// Add adds a file.
func (w *ListingWriter) Add(f Listed) {
	if w.b == nil {
		w.b = []byte(listingFormat)
	}
	w.b = hex.AppendEncode(append(w.b, '\n'), f.Sum[:])
	w.b = strconv.AppendInt(append(w.b, ' '), f.ModTime.Unix(), 36)
	w.b = strconv.AppendQuote(append(w.b, ' '), f.Path)
}

// PutListing keeps what the digest of was made of, so that a later build can say
// which file is another. It costs nothing where that is kept already; of no files
// nothing is kept.
func (s *Store) PutListing(of oci.Digest, w *ListingWriter) error {
	if len(w.b) == 0 || s.HasListing(of) {
		return nil
	}
	return s.putFile(s.listingPath(of), sealRecord(w.b))
}

// Listing is what PutListing kept. None, or one that is damaged, is an error; a
// damaged one is removed.
func (s *Store) Listing(of oci.Digest) ([]Listed, error) {
	list, err := s.readListing(of)
	var damaged *DamagedError
	if errors.As(err, &damaged) {
		os.Remove(s.listingPath(of))
	}
	return list, err
}

func (s *Store) readListing(of oci.Digest) ([]Listed, error) {
	b, err := os.ReadFile(s.listingPath(of))
	if err != nil {
		return nil, err
	}
	text, err := openRecord(b)
	if err != nil {
		return nil, &DamagedError{What: s.listingPath(of), Err: err}
	}
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, 1<<20)
	if !sc.Scan() || sc.Text() != listingFormat {
		return nil, &DamagedError{What: s.listingPath(of), Err: errors.New("another format")}
	}
	var out []Listed
	for sc.Scan() {
		f := strings.SplitN(sc.Text(), " ", 3)
		if len(f) != 3 {
			return nil, &DamagedError{What: s.listingPath(of), Err: errors.New("a line is cut")}
		}
		at, aerr := strconv.ParseInt(f[1], 36, 64)
		path, perr := strconv.Unquote(f[2])
		l := Listed{Path: path, ModTime: time.Unix(at, 0)}
		n, serr := hex.Decode(l.Sum[:], []byte(f[0][:min(len(f[0]), 2*len(l.Sum))]))
		if err := errors.Join(aerr, perr, serr); err != nil || n != len(l.Sum) {
			return nil, &DamagedError{What: s.listingPath(of), Err: cmp.Or(err, errors.New("a sum is cut"))}
		}
		out = append(out, l)
	}
	return out, nil
}
