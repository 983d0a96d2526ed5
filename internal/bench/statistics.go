package main

import (
	"math"
	"slices"
)

// median is the middle of the values; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	m := len(v) / 2
	if len(v)%2 == 1 {
		return v[m]
	}
	return (v[m-1] + v[m]) / 2
}

// bounds is the least and the greatest of the values; 0 of none.
func bounds(values []float64) (low, high float64) {
	if len(values) == 0 {
		return 0, 0
	}
	return slices.Min(values), slices.Max(values)
}

// pairedRatio is the median of a[i]/b[i], over the rounds that both have.
func pairedRatio(a, b []float64) float64 {
	var ratios []float64
	for i := range min(len(a), len(b)) {
		if b[i] > 0 {
			ratios = append(ratios, a[i]/b[i])
		}
	}
	return median(ratios)
}

// fit is how a measure grows with a size.
type fit struct {
	exponent float64 // of y ~ n^exponent, over all points
	last     float64 // the same between the two largest sizes: what goes on beyond them
	constant float64 // of y = constant + each*n
	each     float64
}

// fitted fits measures y at sizes n; both have at least two values above 0,
// sizes ascend. Otherwise it is all zeros.
func fitted(n, y []float64) fit {
	if len(n) < 2 || len(n) != len(y) || slices.Min(n) <= 0 || slices.Min(y) <= 0 {
		return fit{}
	}
	logs := func(v []float64) []float64 {
		l := make([]float64, len(v))
		for i := range v {
			l[i] = math.Log(v[i])
		}
		return l
	}
	var f fit
	_, f.exponent = line(logs(n), logs(y))
	i := len(n) - 1
	f.last = math.Log(y[i]/y[i-1]) / math.Log(n[i]/n[i-1])
	f.constant, f.each = line(n, y)
	return f
}

// linear says whether the measure grows in proportion to the size at most,
// as far as noise lets one tell.
func (f fit) linear() bool { return f.exponent <= 1.1 && f.last <= 1.1 }

// line is the straight line of the least squares.
func line(x, y []float64) (constant, slope float64) {
	var mx, my, xx, xy float64
	n := float64(len(x))
	for i := range x {
		mx += x[i] / n
		my += y[i] / n
	}
	for i := range x {
		xx += (x[i] - mx) * (x[i] - mx)
		xy += (x[i] - mx) * (y[i] - my)
	}
	slope = xy / xx
	return my - slope*mx, slope
}
