package executor

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := turns{free: 2}
		var order []int
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		gone := errors.New("gone")
		take := func(ctx context.Context, n int) {
			go func() {
				switch err := turns.take(ctx, n); {
				case err == nil:
					order = append(order, n)
				case !errors.Is(err, gone):
					t.Errorf("take(%d) = %v", n, err)
				}
			}()
			synctest.Wait()
		}
		for _, n := range []int{7, 6, 9, 1, 8, 3} {
			take(t.Context(), n)
		}
		take(ctx, 2)
		for i := range 4 {
			if i == 1 {
				cancel(gone)
				synctest.Wait()
			}
			turns.give()
			synctest.Wait()
			if i == 0 {
				take(ctx, 0) // behind nobody, but it leaves
			}
		}
		if want := []int{7, 6, 1, 3, 8, 9}; !slices.Equal(order, want) {
			t.Errorf("turns went to %v, want %v", order, want)
		}
		turns.give()
		turns.give()
		if turns.free != 2 || len(turns.waiting) != 0 {
			t.Errorf("%d are free and %d wait in the end", turns.free, len(turns.waiting))
		}
	})
}
