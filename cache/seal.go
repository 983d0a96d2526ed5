package cache

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/internal/oci"
)

// Tar opens the uncompressed tar of a layer whose files, or those of its Source,
// are here, with times up to l.Epoch where that is set: the same bytes each time,
// from either. A layer that turns out to be damaged is dropped, and reading ends
// with a *DamagedError.
func (s *Store) Tar(ctx context.Context, l oci.Layer) (io.ReadCloser, error) {
	l.ID = s.filesOf(l)
	if _, err := s.Layer(l.ID); err != nil {
		return nil, fmt.Errorf("open layer %s: %w", l.ID, err)
	}
	pr, pw := io.Pipe()
	go func() {
		// Small files come as three writes, each of which wakes the reader.
		w := bufio.NewWriterSize(pw, 128<<10)
		_, err := s.writeTar(ctx, w, l, l.DiffID == "") // whoever has the diff ID compares that
		if err == nil {
			err = w.Flush()
		}
		pw.CloseWithError(err)
	}()
	return pr, nil
}

// filesOf is the layer whose files the tar of l is made of.
func (s *Store) filesOf(l oci.Layer) string {
	if l.Source != "" {
		if _, err := s.Layer(l.Source); err == nil {
			return l.Source
		}
	}
	return l.ID
}

// writeTar writes the tar of l. With verify it compares the files with the list
// of them, unless this process has made the layer of bytes that it had in hand.
func (s *Store) writeTar(ctx context.Context, w io.Writer, l oci.Layer, verify bool) (size int64, err error) {
	s.mu.Lock()
	fresh := s.fresh[l.ID]
	s.mu.Unlock()
	size, err = layer.Write(ctx, w, s.Entries(l.ID), s.driver.Dir(l.ID), layer.Options{Epoch: l.Epoch, Verify: verify && !fresh})
	if layer.Unreadable(err) {
		err = s.broken(l.ID, err)
	}
	return size, err
}

// Seal gives l the diff ID and the size of the tar that Tar opens. They are
// kept once somebody has asked for them, for each epoch by themselves.
func (s *Store) Seal(ctx context.Context, l oci.Layer) (oci.Layer, error) {
	if l.Source != "" {
		if s.filesOf(l) == l.ID {
			return l, nil // unpacked, it is its own source
		}
		of, err := s.Seal(ctx, oci.Layer{ID: l.Source, Epoch: l.Epoch})
		if err == nil && of.DiffID != l.DiffID {
			err = s.broken(l.Source, fmt.Errorf("its files were changed: the tar has the diff ID %s now, not %s", of.DiffID, l.DiffID))
		}
		l.TarSize = of.TarSize
		return l, err
	}
	l, ok, err := s.Sealed(l)
	if ok || err != nil {
		return l, err
	}
	h := digest.SHA256.Digester()
	if l.TarSize, err = s.writeTar(ctx, h.Hash(), l, true); err != nil {
		return l, fmt.Errorf("hash the tar of layer %s: %w", l.ID, err)
	}
	l.DiffID = h.Digest()
	return l, s.NoteSeal(l)
}

// Sealed is Seal as far as somebody has asked before.
func (s *Store) Sealed(l oci.Layer) (out oci.Layer, ok bool, err error) {
	known, err := s.Layer(l.ID)
	if err != nil {
		return l, false, err
	}
	l.DiffID = ""
	if l.Epoch.IsZero() {
		l.DiffID, l.TarSize = known.DiffID, known.TarSize
	} else if t, err := s.readTarRecord(l.ID, l.Epoch); err == nil {
		l.DiffID, l.TarSize = t.DiffID, t.TarSize // one that is damaged or not there is found anew
	}
	return l, l.DiffID != "", nil
}

// NoteSeal keeps the diff ID and the size of l's tar, for who has read all of
// it.
func (s *Store) NoteSeal(l oci.Layer) error {
	if !l.Epoch.IsZero() {
		return s.writeTarRecord(l)
	}
	known, err := s.Layer(l.ID)
	if err != nil {
		return err
	}
	known.DiffID, known.TarSize = l.DiffID, l.TarSize
	if err := s.writeRecord(s.layerPath(l.ID), layerRecord{Layer: known, Boot: s.boot}); err != nil {
		return err
	}
	s.remember(known)
	return nil
}

// tarRecord is what is known of a layer's tar with an epoch. That without one is
// in the layer's own record.
type tarRecord struct {
	ID      string     `json:"id"`
	Epoch   int64      `json:"epoch"` // seconds since 1970
	DiffID  oci.Digest `json:"diffID"`
	TarSize int64      `json:"tarSize"`
}

// writeTarRecord keeps l's diff ID. Where another process has removed the layer
// meanwhile, no directory is made for it.
func (s *Store) writeTarRecord(l oci.Layer) error {
	text, err := json.Marshal(tarRecord{ID: l.ID, Epoch: l.Epoch.Unix(), DiffID: l.DiffID, TarSize: l.TarSize})
	if err != nil {
		return err
	}
	return s.writeFile(s.tarPath(l.ID, l.Epoch), sealRecord(text))
}

const tarRecordPrefix = "tar-"

func (s *Store) tarPath(id string, epoch time.Time) string {
	return filepath.Join(s.layerDir(id), tarRecordPrefix+strconv.FormatInt(epoch.Unix(), 10))
}

func (s *Store) readTarRecord(id string, epoch time.Time) (tarRecord, error) {
	var t tarRecord
	path := s.tarPath(id, epoch)
	err := readRecord(path, &t)
	if err == nil && (t.ID != id || t.Epoch != epoch.Unix() || t.DiffID.Validate() != nil) {
		err = &DamagedError{What: path, Err: fmt.Errorf("it is of layer %s at %d", t.ID, t.Epoch)}
	}
	return t, err
}
