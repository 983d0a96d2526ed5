package display

import (
	"fmt"
	"time"
)

// seconds is d as "0.4s", "12.3s", "3m07s".
func seconds(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	if d >= 100*time.Second {
		d = d.Round(time.Second)
		if d >= time.Hour {
			return fmt.Sprintf("%dh%02dm%02ds", d/time.Hour, d/time.Minute%60, d/time.Second%60)
		}
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d/time.Second%60)
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

// stamp is the time of a log line since its step began, in at least three digits.
func stamp(d time.Duration) string {
	s := max(d, 0).Seconds()
	switch {
	case s < 10:
		return fmt.Sprintf("%.3f", s)
	case s < 100:
		return fmt.Sprintf("%.2f", s)
	}
	return fmt.Sprintf("%.1f", s)
}

// size is n bytes in decimal units, as registries and disks count them: "12.3MB".
func size(n int64) string {
	if n < 0 {
		return "-" + size(-n)
	}
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	f, units := float64(n)/1000, "kMGTPE"
	for f >= 999.95 && len(units) > 1 {
		f, units = f/1000, units[1:]
	}
	return fmt.Sprintf("%.1f%cB", f, units[0])
}

// amount is how far c is: "12.3MB / 45.6MB", "17 files".
func (c *counter) amount() string {
	number := func(n int64) string {
		if c.Unit == "B" {
			return size(n)
		}
		return fmt.Sprint(n)
	}
	s := ""
	switch {
	case c.Total > 0:
		s = number(c.Current) + " / " + number(c.Total)
	case c.Current > 0:
		s = number(c.Current)
	}
	if s != "" && c.Unit != "" && c.Unit != "B" {
		s += " " + c.Unit
	}
	return s
}

// rate is bytes per second since the first event, or empty.
func (c *counter) rate() string {
	d := c.Time.Sub(c.began).Seconds()
	if c.Unit != "B" || d < 0.5 || c.Current <= c.first {
		return ""
	}
	return size(int64(float64(c.Current-c.first)/d)) + "/s"
}
