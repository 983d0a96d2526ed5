package cache

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/zeebo/blake3"

	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
)

// Record is what is kept of a step: its result, and the ingredients of its key.
type Record struct {
	Key     oci.Digest      `json:"key"`
	Place   string          `json:"place,omitempty"`
	Parts   []Part          `json:"parts,omitempty"`
	Result  json.RawMessage `json:"result"`
	Layers  []oci.Layer     `json:"layers"` // what the result needs to be here
	Created time.Time       `json:"created"`
	Expires time.Time       `json:"expires,omitzero"`

	// What is kept of the place alone.
	Misses []Miss `json:"-"`
	Hint   Hint   `json:"-"`
}

// Hint is what the user was last told of a place's misses, and when.
type Hint struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// Miss is one time that a step was not found, because files of the context were
// others, and nothing else was.
type Miss struct {
	At time.Time `json:"at"`
	// Files are those files, as absolute paths in the context; one that ends in
	// a slash is a directory in which something changed. None: it is not known.
	Files []string `json:"files,omitempty"`
}

// Part is one ingredient of a key: a name, and its digest or a short value.
type Part struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	// Info: the part is in another one of the key; it is here to be told apart.
	Info bool `json:"info,omitempty"`
}

// ErrExpired is the error for a record that was only good until a time that has
// passed. It is an fs.ErrNotExist too.
var ErrExpired = errors.New("expired")

// expired is an ErrExpired that says when.
type expired time.Time

func (e expired) Error() string {
	return "its result was good until " + time.Time(e).Local().Format(time.DateTime)
}

func (e expired) Is(target error) bool { return target == ErrExpired || target == fs.ErrNotExist }

// DamagedError is the error for a record or a layer that is not what was
// written. It is a miss with a reason.
type DamagedError struct {
	What  string
	Layer string // its ID, where it is one
	Err   error
	gone  bool
}

func (e *DamagedError) Error() string {
	if e.gone {
		return fmt.Sprintf("%s is gone: %v", e.What, e.Err)
	}
	return fmt.Sprintf("%s is damaged: %v", e.What, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// Gone is the *DamagedError of a layer that was here and is not any more, as err
// says.
func Gone(id string, err error) error {
	return &DamagedError{What: "layer " + id, Layer: id, Err: err, gone: true}
}

// sealRecord adds the checksum line that openRecord checks: the text, a
// newline, "blake3:" and the hash of the text, a newline.
func sealRecord(text []byte) []byte {
	return appendSum(text, text)
}

func appendSum(b, text []byte) []byte {
	sum := blake.Sum256(text)
	return append(hex.AppendEncode(append(b, "\nblake3:"...), sum[:]), '\n')
}

// sealed is the writer of a record that need not be held whole: seal ends it.
type sealed struct {
	io.Writer // takes the text
	to        *bufio.Writer
	sum       *blake3.Hasher
}

func newSealed(to io.Writer) *sealed {
	w, sum := bufio.NewWriter(to), blake.Get()
	return &sealed{Writer: io.MultiWriter(w, sum), to: w, sum: sum}
}

// seal writes the line that sealRecord adds.
func (s *sealed) seal() error {
	fmt.Fprintf(s.to, "\nblake3:%x\n", s.sum.Sum(nil))
	blake.Put(s.sum)
	return s.to.Flush() // says what was wrong before, too
}

func openRecord(b []byte) ([]byte, error) {
	const tail = len("\nblake3:") + 64 + 1
	if len(b) < tail {
		return nil, errors.New("too short")
	}
	text := b[: len(b)-tail : len(b)-tail]
	if !bytes.Equal(appendSum(nil, text), b[len(text):]) {
		return nil, errors.New("checksum differs")
	}
	return text, nil
}

func readRecord(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := openRecord(b)
	if err == nil {
		err = json.Unmarshal(text, v)
	}
	if err != nil {
		return &DamagedError{What: path, Err: err}
	}
	return nil
}

func (s *Store) writeRecord(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.putFile(path, sealRecord(text))
}

func (s *Store) stepPath(key oci.Digest) string {
	hex := key.Encoded()
	return filepath.Join(s.dir, "steps", hex[:2], hex)
}

func (s *Store) placePath(place string) string {
	return filepath.Join(s.dir, "places", shortHash(place))
}

// Step is the record under key. One that is not there is an fs.ErrNotExist; one
// whose layers have been collected is removed, and an fs.ErrNotExist too; one that
// is damaged is removed and a *DamagedError.
func (s *Store) Step(key oci.Digest) (*Record, error) {
	path := s.stepPath(key)
	var r Record
	err := readRecord(path, &r)
	if err == nil && r.Key != key {
		err = &DamagedError{What: path, Err: fmt.Errorf("it is of another step, %s", r.Key)}
	}
	if err == nil {
		err = s.present(r.Layers)
	}
	var damaged *DamagedError
	if errors.As(err, &damaged) || errors.Is(err, errGone) {
		os.Remove(path)
	}
	if err != nil {
		return nil, err
	}
	if !r.Expires.IsZero() && s.now().After(r.Expires) {
		return nil, expired(r.Expires)
	}
	return &r, nil
}

// PutStep records r under its key, and as the last of its place.
func (s *Store) PutStep(r Record) error {
	if r.Created.IsZero() {
		r.Created = s.now().UTC()
	}
	if err := s.writeRecord(s.stepPath(r.Key), r); err != nil {
		return err
	}
	if r.Place == "" {
		return nil
	}
	return s.PutPlace(r.Place, r)
}

// PutPlace makes r the last record of a further place.
func (s *Store) PutPlace(of string, r Record) error {
	if r.Created.IsZero() {
		r.Created = s.now().UTC()
	}
	return s.writeRecord(s.placePath(of), place{
		Place: of, Key: r.Key, Parts: r.Parts, Created: r.Created, Misses: r.Misses, Hint: r.Hint,
	})
}

// SetHint records what the user is told of a place's misses. A record that
// another process writes at the same time may win.
func (s *Store) SetHint(of string, h Hint) error {
	r, err := s.Last(of)
	if err != nil {
		return err
	}
	r.Hint = h
	return s.PutPlace(of, *r)
}

// place is what is remembered of the step recorded last at a place: enough to
// compare the next one with, also when the record is gone.
type place struct {
	Place   string     `json:"place"`
	Key     oci.Digest `json:"key"`
	Parts   []Part     `json:"parts"`
	Created time.Time  `json:"created"`
	Misses  []Miss     `json:"misses,omitempty"`
	Hint    Hint       `json:"hint,omitzero"`
}

// Last is key and ingredients of the step recorded last at a place; the record
// itself may be gone. None is an fs.ErrNotExist.
func (s *Store) Last(of string) (*Record, error) {
	var p place
	if err := readRecord(s.placePath(of), &p); err != nil {
		return nil, err
	}
	if p.Place != of {
		return nil, fs.ErrNotExist
	}
	return &Record{Key: p.Key, Place: p.Place, Parts: p.Parts, Created: p.Created, Misses: p.Misses, Hint: p.Hint}, nil
}

// errGone is for a record whose layers have been collected.
var errGone = fmt.Errorf("it was collected: %w", fs.ErrNotExist)

// presentAs is the layer that has to be here for l to be of use: one that stands
// for a tar can be unpacked again while its Source is.
func (s *Store) presentAs(l oci.Layer) string {
	if _, err := os.Lstat(s.layerPath(l.ID)); err != nil && l.Source != "" {
		return l.Source
	}
	return l.ID
}

// present reports layers that were built here and are gone. Pulled layers can
// be fetched again.
func (s *Store) present(layers []oci.Layer) error {
	s.use(layers)
	for _, l := range layers {
		if l.Blob != nil {
			continue
		}
		id := s.presentAs(l)
		_, err := s.Layer(id)
		var bad *DamagedError
		if errors.Is(err, fs.ErrNotExist) && !errors.As(err, &bad) {
			s.stray(id)
			return fmt.Errorf("layer %s: %w", l.ID, errGone)
		}
		if err != nil {
			return damaged(id, err)
		}
	}
	return nil
}
