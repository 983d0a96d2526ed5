package executor

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/solver"
)

// Records is the solver's cache in a state directory.
type Records struct {
	Store       *cache.Store
	Losses      *Losses      // imported layers that are not to be had; may be nil
	Differences *Differences // of the same cache's misses; may be nil
}

// recorded is the form in which a Result is kept.
type recorded struct {
	Content oci.Digest `json:"content"`
}

// Get returns the result recorded under k.
func (c Records) Get(_ context.Context, k solver.Key) (Result, error) {
	if k.Digest == "" {
		return Result{}, &solver.Miss{Why: "it is not kept"}
	}
	r, err := c.Store.Step(k.Digest)
	if err != nil {
		return Result{}, &solver.Miss{Why: c.why(k, err)}
	}
	if err := c.Losses.Why(r.Layers); err != nil {
		return Result{}, &solver.Miss{Why: "a layer of it is not to be had: " + err.Error()}
	}
	return resultOf(r), nil
}

func resultOf(r *cache.Record) Result { return Result{Layers: r.Layers, Expires: r.Expires} }

// Put records r under k. A context is the user's and may change: it is not kept.
func (c Records) Put(_ context.Context, k solver.Key, r Result) error {
	if k.Digest == "" || r.Local != nil {
		return nil
	}
	rec := cache.Record{Key: k.Digest, Place: k.Place}
	for _, p := range k.Parts {
		rec.Parts = append(rec.Parts, cache.Part(p))
	}
	if k.Place != "" {
		if last, err := c.Store.Last(k.Place); err == nil {
			rec.Misses, rec.Hint = c.misses(last, k), last.Hint
		}
	}
	if err := put(c.Store, rec, r); err != nil || k.Place == "" {
		return err
	}
	return c.putElsewhere(k)
}

// putElsewhere records which platform k's step was built for last. It mostly is
// the same as ever.
func (c Records) putElsewhere(k solver.Key) error {
	of, is := elsewhere(k.Place), solverPart(k.Parts, partPlatform)
	if last, err := c.Store.Last(of); err == nil && partValue(last.Parts, partPlatform) == is {
		return nil
	}
	return c.Store.PutPlace(of, cache.Record{Key: k.Digest, Parts: []cache.Part{{Name: partPlatform, Value: is}}})
}

func put(s *cache.Store, rec cache.Record, r Result) error {
	var err error
	if rec.Result, err = json.Marshal(recorded{Content: r.Content()}); err != nil {
		return err
	}
	rec.Layers, rec.Expires = r.Layers, r.Expires
	if rec.Layers == nil {
		rec.Layers = []oci.Layer{}
	}
	return s.PutStep(rec)
}

// Lock holds k against other processes.
func (c Records) Lock(ctx context.Context, k solver.Key) (func(), error) {
	if k.Digest == "" {
		return func() {}, nil
	}
	c.Store.Warm() // whoever locks a step is about to run it
	return c.Store.Lock(ctx, "step-"+k.Digest.Encoded())
}

// why says why k is not cached.
func (c Records) why(k solver.Key, err error) string {
	var damaged *cache.DamagedError
	if errors.As(err, &damaged) {
		return err.Error()
	}
	if errors.Is(err, cache.ErrExpired) {
		return err.Error()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "its record cannot be read: " + err.Error()
	}
	if k.Place == "" {
		return ""
	}
	return c.reason(k)
}

// lookup and record keep results that are no step's.
func (w *Worker) lookup(key oci.Digest) (Result, error) {
	r, err := w.Store.Step(key)
	if err != nil {
		return Result{}, err
	}
	return resultOf(r), nil
}

func (w *Worker) record(key oci.Digest, r Result) error {
	return put(w.Store, cache.Record{Key: key}, r)
}
