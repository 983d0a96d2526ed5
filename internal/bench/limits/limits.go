// Package limits measures what a machine can do: what a builder cannot be faster
// than.
package limits

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"
)

// Limit is one rate or time.
type Limit struct {
	Name  string
	Value float64
	Unit  string // "MB/s" (a million bytes), "ms" or "s"
}

func (l Limit) String() string {
	places := 2
	if l.Value >= 100 {
		places = 0
	}
	return fmt.Sprintf("%s: %.*f %s", l.Name, places, l.Value, l.Unit)
}

// Measure measures them in dir, a directory to work in on the file system that
// counts. It needs root, a Go toolchain and a static busybox, and a program that
// calls Child first of all. What cannot be measured is left out and told.
func Measure(ctx context.Context, dir string) ([]Limit, error) {
	dir, err := os.MkdirTemp(dir, "limits-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var all []Limit
	for _, group := range []struct {
		name    string
		measure func(context.Context, string) ([]Limit, error)
	}{{"hash and compress", compute}, {"copy and walk", files}, {"start processes", processes}} {
		found, err := group.measure(ctx, dir)
		all = append(all, found...)
		if ctx.Err() != nil {
			return all, context.Cause(ctx)
		}
		if err != nil {
			return all, fmt.Errorf("%s: %w", group.name, err)
		}
	}
	return all, nil
}

// times is how long f takes, so many times, in order; after is called between
// them, nil for nothing.
func times(n int, f, after func() error) ([]time.Duration, error) {
	var took []time.Duration
	for range n {
		start := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
		if after == nil {
			continue
		}
		if err := after(); err != nil {
			return nil, err
		}
	}
	slices.Sort(took)
	return took, nil
}

// best is the shortest time: what the machine can do, with as little of its
// other work as may be.
func best(n int, f, after func() error) (time.Duration, error) {
	took, err := times(n, f, after)
	if err != nil {
		return 0, err
	}
	return took[0], nil
}

// middle is the median.
func middle(n int, f, after func() error) (time.Duration, error) {
	took, err := times(n, f, after)
	if err != nil {
		return 0, err
	}
	return took[len(took)/2], nil
}

func rate(bytes int, took time.Duration) float64 { return float64(bytes) / 1e6 / took.Seconds() }

func ms(took time.Duration) float64 { return took.Seconds() * 1e3 }
