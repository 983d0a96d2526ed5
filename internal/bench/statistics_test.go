package main

import (
	"math"
	"testing"
)

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

func TestFitted(t *testing.T) {
	for _, tt := range []struct {
		name   string
		n, y   []float64
		want   fit
		linear bool
	}{
		{"proportional", []float64{1, 2, 4}, []float64{3, 6, 12}, fit{1, 1, 0, 3}, true},
		{"constant", []float64{1, 10, 100}, []float64{5, 5, 5}, fit{0, 0, 5, 0}, true},
		{"quadratic", []float64{1, 10, 100}, []float64{1, 100, 10000}, fit{2, 2, -505, 104.65}, false},
		{"worse at its end", []float64{1, 10, 100}, []float64{10, 11, 200}, fit{0.65, 1.26, -0.056, 1.99}, false},
		{"one point", []float64{1}, []float64{1}, fit{}, true},
		{"nothing measured", []float64{1, 2}, []float64{0, 1}, fit{}, true},
	} {
		got := fitted(tt.n, tt.y)
		near := func(a, b float64) bool { return math.Abs(a-b) <= 0.01*max(1, math.Abs(b)) }
		if !near(got.exponent, tt.want.exponent) || !near(got.last, tt.want.last) || !near(got.constant, tt.want.constant) || !near(got.each, tt.want.each) {
			t.Errorf("%s: fitted(%v, %v) = %+v, want %+v", tt.name, tt.n, tt.y, got, tt.want)
		}
		if got.linear() != tt.linear {
			t.Errorf("%s: fitted(%v, %v).linear() = %v, want %v", tt.name, tt.n, tt.y, got.linear(), tt.linear)
		}
	}
}
