package chart

// Bars are groups of bars, one for each series. Each group has a scale of its
// own, which ends at its longest bar.
type Bars struct {
	Title  string
	Series []string
	Groups []Group
}

// Group is one thing that was measured.
type Group struct {
	Name, Note string
	Bars       []Bar
}

// Bar is a value of the series of that number.
type Bar struct {
	Series int
	Value  float64 // its length; less than 0 is 0
	Text   string  // beside it
}

// SVG draws them from top to bottom.
func (b Bars) SVG() []byte {
	const (
		width, left, longest = 860.0, 330.0, 330.0
		head, bar, gap       = 60.0, 15.0, 14.0
	)
	height := head
	for _, g := range b.Groups {
		height += bar*float64(max(2, len(g.Bars))) + gap
	}
	var c canvas
	c.open(width, height, b.Title)
	c.text(16, 24, "start", ` font-size="16" font-weight="600"`, b.Title)
	c.legend(16, 45, b.Series)
	y := head
	for _, g := range b.Groups {
		c.grid(16, y-gap/2+2, width-16, y-gap/2+2)
		c.text(16, y+12, "start", ` font-weight="600"`, g.Name)
		c.text(16, y+27, "start", ` class="faint" font-size="11"`, g.Note)
		most := 0.0
		for _, v := range g.Bars {
			most = max(most, v.Value)
		}
		for i, v := range g.Bars {
			at, length := y+bar*float64(i), 0.0
			if most > 0 && v.Value > 0 {
				length = max(1, v.Value/most*longest)
			}
			c.rect(left, at+2, length, bar-3, color(v.Series))
			c.text(left+length+6, at+12, "start", ` font-size="11"`, v.Text)
		}
		y += bar*float64(max(2, len(g.Bars))) + gap
	}
	return c.close()
}
