package ordered

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

type value struct{ n, doubled int }

func options(taken *[]int) Options[value] {
	return Options[value]{
		Work: func(_ context.Context, batch []value) error {
			if rand.IntN(4) == 0 {
				time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
			}
			for i := range batch {
				batch[i].doubled = 2 * batch[i].n
			}
			return nil
		},
		Take:  func(v *value) { *taken = append(*taken, v.doubled) },
		Cost:  func(v *value) int64 { return int64(v.n % 7) },
		Batch: 5, MaxCost: 9,
	}
}

func TestOrder(t *testing.T) {
	for _, count := range []int{0, 1, 4, 5, 6, 1000} {
		var got []int
		p := New(t.Context(), options(&got))
		want := []int{}
		for round := range 3 {
			for i := range count {
				if err := p.Add(value{n: round + i}); err != nil {
					t.Fatal(err)
				}
				want = append(want, 2*(round+i))
			}
			if err := p.Drain(); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("after %d rounds of %d values, Drain has taken %d of them, want %d in their order", round+1, count, len(got), len(want))
			}
		}
		p.Close()
	}
}

// Batches that are a quarter full end before what is to be worked on apart, and
// all values come in their order still.
func TestApart(t *testing.T) {
	var got []int
	var mu sync.Mutex
	type run struct{ first, size int }
	var runs []run
	o := options(&got)
	work := o.Work
	o.Batch, o.MaxCost = 8, 1<<30
	o.Apart = func(v *value) bool { return slices.Contains([]int{1, 2, 5, 14, 15, 40}, v.n) }
	o.Work = func(ctx context.Context, batch []value) error {
		mu.Lock()
		runs = append(runs, run{batch[0].n, len(batch)})
		mu.Unlock()
		return work(ctx, batch)
	}
	p := New(t.Context(), o)
	defer p.Close()
	var want []int
	for n := range 42 {
		if err := p.Add(value{n: n}); err != nil {
			t.Fatal(err)
		}
		want = append(want, 2*n)
	}
	if err := p.Drain(); err != nil || !slices.Equal(got, want) {
		t.Errorf("Drain = %v, and has taken %d, want %d", err, got, want)
	}
	slices.SortFunc(runs, func(a, b run) int { return a.first - b.first })
	// Before 1, 14 and 40 there is one value.
	if want := []run{{0, 2}, {2, 3}, {5, 8}, {13, 2}, {15, 8}, {23, 8}, {31, 8}, {39, 3}}; !slices.Equal(runs, want) {
		t.Errorf("batches, by their first values and sizes, are %v, want %v", runs, want)
	}
}

func TestFails(t *testing.T) {
	bad := errors.New("bad")
	for _, at := range []int{0, 3, 100} {
		var got []int
		added, dropped := 0, 0
		o := options(&got)
		o.Drop = func(*value) { dropped++ }
		o.Work = func(_ context.Context, batch []value) error {
			for _, v := range batch {
				if v.n == at {
					return bad
				}
			}
			return nil
		}
		p := New(t.Context(), o)
		var err error
		for i := 0; i < 100_000 && err == nil; i++ {
			err = p.Add(value{n: i})
			added++
			if i == 5000 && at == 0 && err == nil {
				time.Sleep(time.Millisecond) // let the error through
			}
		}
		if err != nil && !errors.Is(err, bad) {
			t.Errorf("Add after a failure at %d = %v, want %v", at, err, bad)
		}
		if err := p.Drain(); !errors.Is(err, bad) {
			t.Errorf("Drain after a failure at %d = %v, want %v", at, err, bad)
		}
		if len(got) > at {
			t.Errorf("%d values were taken, of which the one at %d failed", len(got), at)
		}
		p.Close()
		if dropped != added {
			t.Errorf("%d values were dropped, of %d", dropped, added)
		}
	}
}

func TestStops(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		var got []int
		p := New(ctx, options(&got))
		for i := range 200 {
			if i == 100 {
				cancel()
			}
			_ = p.Add(value{n: i}) // whose error Drain repeats
		}
		if err := p.Drain(); !errors.Is(err, context.Canceled) {
			t.Errorf("Drain of what was stopped = %v", err)
		}
		p.Close()
		cancel()
	}
	for i := 0; runtime.NumGoroutine() > before; i++ {
		if i == 100 {
			t.Fatalf("%d goroutines are left, of %d", runtime.NumGoroutine(), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
