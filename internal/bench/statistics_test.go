package main

import "testing"

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(tt.values); got != tt.want {
			t.Errorf("median(%v) = %v, want %v", tt.values, got, tt.want)
		}
	}
}

func TestPairedRatio(t *testing.T) {
	for _, tt := range []struct {
		a, b []float64
		want float64
	}{
		{nil, nil, 0},
		// The machine was slow in the second round: the pairs do not care.
		{[]float64{1, 10, 1}, []float64{4, 40, 5}, 0.25},
		{[]float64{1, 2}, []float64{2}, 0.5},
		{[]float64{1, 2}, []float64{0, 4}, 0.5},
	} {
		if got := pairedRatio(tt.a, tt.b); got != tt.want {
			t.Errorf("pairedRatio(%v, %v) = %v, want %v", tt.a, tt.b, got, tt.want)
		}
	}
}
