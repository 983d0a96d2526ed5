package chart

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Lines are curves on logarithmic axes.
type Lines struct {
	Title, X, Y string // what it shows; what the axes are, with units
	Series      []Series
}

// Series is one curve.
type Series struct {
	Name   string
	Points []Point // X ascending, all above 0
}

// Point is where a curve was measured.
type Point struct{ X, Y float64 }

// Panels draws several Lines in rows of so many.
func Panels(title string, columns int, all []Lines) []byte {
	const width, height, head = 430.0, 300.0, 40.0
	rows := (len(all) + columns - 1) / columns
	var c canvas
	c.open(width*float64(columns), head+height*float64(rows), title)
	c.text(16, 26, "start", ` font-size="16" font-weight="600"`, title)
	for i, l := range all {
		fmt.Fprintf(&c, "<g transform=\"translate(%s %s)\">\n", number(width*float64(i%columns)), number(head+height*float64(i/columns)))
		l.draw(&c, width, height)
		c.WriteString("</g>\n")
	}
	return c.close()
}

// draw draws into a space of that size.
func (l Lines) draw(c *canvas, width, height float64) {
	const left, right, top, bottom = 62.0, 24.0, 40.0, 40.0
	var names []string
	x, y := newAxis(left, width-right), newAxis(height-bottom, top)
	for _, s := range l.Series {
		names = append(names, s.Name)
		for _, p := range s.Points {
			x.take(p.X)
			y.take(p.Y)
		}
	}
	c.text(16, 16, "start", ` font-weight="600"`, l.Title)
	c.legend(16, 32, names)
	if x.empty() {
		return
	}
	y.widen(10)
	for _, v := range l.sizes() {
		c.grid(x.at(v), top, x.at(v), height-bottom)
		c.text(x.at(v), height-bottom+14, "middle", ` class="faint" font-size="10"`, short(v))
	}
	for _, v := range y.ticks() {
		c.grid(left, y.at(v), width-right, y.at(v))
		c.text(left-5, y.at(v)+3, "end", ` class="faint" font-size="10"`, short(v))
	}
	c.text((left+width-right)/2, height-bottom+29, "middle", ` class="faint" font-size="11"`, l.X)
	fmt.Fprintf(c, "<g transform=\"translate(14 %s) rotate(-90)\">", number((top+height-bottom)/2))
	c.text(0, 0, "middle", ` class="faint" font-size="11"`, l.Y)
	c.WriteString("</g>\n")
	for i, s := range l.Series {
		var path []string
		for _, p := range s.Points {
			path = append(path, number(x.at(p.X))+","+number(y.at(p.Y)))
			fmt.Fprintf(c, "<circle cx=\"%s\" cy=\"%s\" r=\"3\" fill=\"%s\"/>\n", number(x.at(p.X)), number(y.at(p.Y)), color(i))
		}
		fmt.Fprintf(c, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\"/>\n", strings.Join(path, " "), color(i))
	}
}

// sizes are where there are points, and where the grid's upright lines are.
func (l Lines) sizes() []float64 {
	var v []float64
	for _, s := range l.Series {
		for _, p := range s.Points {
			v = append(v, p.X)
		}
	}
	slices.Sort(v)
	return slices.Compact(v)
}

// axis maps values to pixels by their logarithms.
type axis struct {
	from, to  float64 // pixels
	low, high float64 // the least and the greatest value
}

func newAxis(from, to float64) axis { return axis{from, to, math.Inf(1), math.Inf(-1)} }

func (a *axis) take(v float64) {
	if v > 0 {
		a.low, a.high = min(a.low, v), max(a.high, v)
	}
}

// widen has the axis span at least that factor: a curve that is flat looks so.
func (a *axis) widen(factor float64) {
	if more := math.Sqrt(factor / (a.high / a.low)); more > 1 {
		a.low, a.high = a.low/more, a.high*more
	}
}

func (a axis) empty() bool { return a.low > a.high }

// at is a value's place. A single value is in the middle.
func (a axis) at(v float64) float64 {
	low, high := math.Log(a.low)-0.1, math.Log(a.high)+0.1
	return a.from + (math.Log(max(v, a.low))-low)/(high-low)*(a.to-a.from)
}

// ticks are 1, 2 and 5 times powers of ten within the axis; of a long one the
// powers alone; of a short one its ends.
func (a axis) ticks() []float64 {
	steps := []float64{1, 2, 5}
	if a.high/a.low > 500 {
		steps = steps[:1]
	}
	var v []float64
	for e := math.Floor(math.Log10(a.low)); e <= math.Log10(a.high); e++ {
		for _, s := range steps {
			if t := s * math.Pow(10, e); t >= a.low*0.999 && t <= a.high*1.001 {
				v = append(v, t)
			}
		}
	}
	if len(v) < 2 {
		v = []float64{a.low}
		if a.high/a.low > 1.05 {
			v = append(v, a.high)
		}
	}
	return v
}

// short writes a value as an axis does: 0.05, 20, 3k, 2M.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 1e3:
		return fmt.Sprintf("%.3gk", v/1e3)
	}
	return fmt.Sprintf("%.3g", v)
}
