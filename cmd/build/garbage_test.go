package main

import "testing"

// TestGarbagePercent: what may be allocated is 8 MiB, or a fifth of what is in use,
// and not more than twice that.
func TestGarbagePercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 200, 1 << 20: 200, 4 << 20: 200, 8 << 20: 100, 16 << 20: 50, 40 << 20: 20, 1 << 30: 20} {
		if got := garbagePercent(live); got != want {
			t.Errorf("garbagePercent(%d) = %d, want %d", live, got, want)
		}
	}
}
