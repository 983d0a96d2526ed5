package executor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/layer"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
)

// pull is the fetching of an image's layers, shown as a step of its own.
type pull struct {
	step    progress.Step
	waiters int
	err     error // the first
}

// unpackers is how many layers are fetched and unpacked at once.
const unpackers = 3

// Fetch has all of the chain layers here, as snapshots: those that are not are
// pulled, several at once, or unpacked anew with the times that their image has.
// It returns them with the IDs that they have here.
func (w *Worker) Fetch(ctx context.Context, layers []oci.Layer) ([]oci.Layer, error) {
	layers, missing := w.placed(layers)
	var pulled []int
	for _, i := range missing {
		if l := layers[i]; unpacked(l) {
			pulled = append(pulled, i)
		} else if _, err := w.Store.Hold(l.ID); err != nil {
			return nil, cache.Gone(l.ID, err)
		}
	}
	if len(pulled) == 0 {
		return layers, nil
	}
	g, each := errgroup.WithContext(ctx)
	g.SetLimit(unpackers)
	var mu sync.Mutex
	var linked []int
	for _, i := range pulled {
		g.Go(func() error {
			err := w.fetchLayer(each, layers[i], nil, i == 0)
			if errors.Is(err, layer.ErrLowerLink) {
				mu.Lock()
				linked = append(linked, i)
				mu.Unlock()
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// A layer with a hard link to a file of a lower one, or without the parents
	// of its files, can only be unpacked upon it, and is good upon that chain
	// alone. Docker makes none, other tools do.
	slices.Sort(linked)
	for _, i := range linked {
		layers[i].ID = upon(layers, i)
		if err := w.fetchLayer(ctx, layers[i], layers[:i], i == 0); err != nil {
			return nil, err
		}
	}
	return layers, nil
}

// watch looks at the files of layers, beside what is done with them. intact waits
// for that and says whether they are, and have been, what they should be; it may
// be called again.
func (w *Worker) watch(ctx context.Context, layers []oci.Layer) (intact func() error) {
	looked := make(chan error, 1)
	go func() { looked <- w.Store.Intact(ctx, layers) }()
	return sync.OnceValue(func() error {
		if err := <-looked; err != nil {
			return err
		}
		// Another process may have found one damaged, and made it anew.
		for _, l := range layers {
			if _, err := w.Store.Layer(l.ID); err != nil {
				return cache.Gone(l.ID, err)
			}
		}
		return nil
	})
}

// placed is chain with the IDs under which its layers lie here, and which of
// them do not.
func (w *Worker) placed(chain []oci.Layer) (layers []oci.Layer, missing []int) {
	layers = slices.Clone(chain)
	here := func(id string) bool {
		_, err := w.Store.Hold(id)
		return err == nil
	}
	for i := range layers {
		l := &layers[i]
		if here(l.ID) {
			continue
		}
		if unpacked(*l) {
			if l.ID = upon(layers, i); here(l.ID) {
				continue
			}
			if l.ID = pulledID(*l); here(l.ID) {
				continue
			}
		}
		missing = append(missing, i)
	}
	return layers, missing
}

// unpacked reports a layer that is made of a tar, which can be had again.
func unpacked(l oci.Layer) bool { return l.Blob != nil || l.Source != "" }

// pulledID is what a pulled layer is called that lies here by itself; upon is
// what layer i is called that has been unpacked upon those below it.
func pulledID(l oci.Layer) string { return strings.Replace(l.DiffID.String(), ":", "-", 1) }

func upon(layers []oci.Layer, i int) string {
	h := blake.Get()
	defer blake.Put(h)
	for _, l := range layers[:i] {
		fmt.Fprintln(h, l.ID)
	}
	return pulledID(layers[i]) + "-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// fetchLayer pulls and unpacks l: upon chain, or with a nil chain by itself. A
// lowest layer that hides something is an ErrLowerLink then: by itself it would
// keep whiteouts, and of those that hide nothing overlayfs makes files that
// cannot be read.
func (w *Worker) fetchLayer(ctx context.Context, l oci.Layer, chain []oci.Layer, lowest bool) (err error) {
	unlock, err := w.Store.Lock(ctx, "layer-"+l.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := w.Store.Layer(l.ID); err == nil {
		return nil // another process has unpacked it meanwhile
	} else if cache.Passes(err) {
		return err
	}
	p := w.beginPull(l.Origin)
	defer func() { w.endPull(l.Origin, Shown(err)) }()
	r, err := w.Fetcher.OpenLayer(ctx, l, p.step)
	if err != nil {
		return Lost(ctx, l, err) // which names the image
	}
	defer r.Close()
	d, err := w.Store.PreparePulled(ctx, l.ID, chain)
	if err != nil {
		return err
	}
	defer d.Discard()
	tar, sum := io.Reader(r), sha256.New()
	if l.Source != "" {
		tar = io.TeeReader(r, sum) // written here: nobody has verified it
	}
	changes, err := layer.Apply(ctx, tar, d.Tree, layer.ApplyOptions{Complete: chain != nil})
	if err != nil {
		return Lost(ctx, l, fmt.Errorf("unpack layer %s of %s: %w", l.DiffID, l.Origin, err))
	}
	// What follows the tar's end belongs to the blob: its digest is verified
	// when all of it has been read.
	if _, err := io.Copy(io.Discard, tar); err != nil {
		return Lost(ctx, l, err) // which names the image
	}
	if got := digest.NewDigest(digest.SHA256, sum); l.Source != "" && got != l.DiffID {
		return fmt.Errorf("unpack layer %s: its tar has the diff ID %s now, as its files were changed; build the image again", l.DiffID, got)
	}
	hides := func(c tree.Change) bool { return c.Removed || c.Opaque }
	if chain == nil && lowest && slices.ContainsFunc(changes, hides) {
		return fmt.Errorf("unpack layer %s of %s: it hides what is not there: %w", l.DiffID, l.Origin, layer.ErrLowerLink)
	}
	if got := layer.Digest(changes); l.Imported && l.Content != l.DiffID && got != l.Content {
		return Lost(ctx, l, fmt.Errorf("layer %s of %s has the content %s, not %s", l.DiffID, l.Origin, got, l.Content))
	}
	l.Epoch, l.Source = time.Time{}, "" // its files are those of the tar
	_, err = d.CommitPulled(ctx, l, changes)
	return err
}

func (w *Worker) beginPull(origin string) *pull {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, ok := w.pulls[origin]
	if !ok {
		p = &pull{step: progress.Step("pull:" + origin)}
		w.pulls[origin] = p
		name := "pull " + origin
		if origin == "" {
			name = "unpack an image of the store"
		}
		w.Progress.Emit(progress.Started{Step: p.step, Name: name, Time: time.Now()})
	}
	p.waiters++
	return p
}

// endPull ends the shown step with the last layer that is being pulled.
func (w *Worker) endPull(origin string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pulls[origin]
	if p.err == nil && !errors.Is(err, layer.ErrLowerLink) { // which is not its end
		p.err = err
	}
	if p.waiters--; p.waiters == 0 {
		delete(w.pulls, origin)
		w.Progress.Emit(progress.Done{Step: p.step, Err: p.err, Time: time.Now()})
	}
}

// adopt makes a layer of a directory that a source has left to us.
func (w *Worker) adopt(ctx context.Context, dir string) (Result, error) {
	defer os.RemoveAll(dir)
	t, err := tree.New("", []string{dir})
	if err != nil {
		return Result{}, err
	}
	defer t.Close()
	d, err := w.Store.Prepare(ctx, nil)
	if err != nil {
		return Result{}, err
	}
	defer d.Discard()
	if err := copyAll(t, "/", d.Tree, "/"); err != nil {
		return Result{}, err
	}
	l, err := d.Commit(ctx, nil)
	if err != nil {
		return Result{}, err
	}
	return Result{Layers: []oci.Layer{l}}, nil
}

// copyAll copies what is in the directory src of one tree to dst in another,
// metadata and all.
func copyAll(from *tree.Tree, src string, to *tree.Tree, dst string) error {
	names, err := from.ReadDir(src)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := copyEntry(from, path.Join(src, n), to, path.Join(dst, n)); err != nil {
			return err
		}
	}
	return nil
}

// copyEntry copies src of one tree, with all that is in it, to dst in another,
// where nothing is.
func copyEntry(from *tree.Tree, src string, to *tree.Tree, dst string) error {
	e, err := from.Lstat(src)
	if err != nil {
		return err
	}
	switch e.Type() {
	case unix.S_IFDIR:
		if err = to.Mkdir(dst, e.Perm()); err == nil {
			err = copyAll(from, src, to, dst)
		}
	case unix.S_IFREG:
		err = copyBytes(from, src, to, dst)
	case unix.S_IFLNK:
		err = to.Symlink(e.Link, dst)
	default:
		err = to.Mknod(dst, e.Mode, e.Major, e.Minor)
	}
	if err != nil {
		return err
	}
	return to.SetMeta(dst, e)
}

func copyBytes(from *tree.Tree, src string, to *tree.Tree, dst string) error {
	in, err := from.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := to.Create(dst)
	if err != nil {
		return err
	}
	_, err = out.ReadFrom(in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}
