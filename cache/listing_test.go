package cache

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestListing(t *testing.T) {
	s := open(t, t.TempDir())
	at := func(sec int64) time.Time { return time.Unix(sec, 0) }
	files := map[string][]Listed{
		"one":        {{"/", [8]byte{1}, at(5)}},
		"times":      {{"/a", [8]byte{1}, at(1 << 40)}, {"/b", [8]byte{2}, at(-1 << 40)}, {"/c", [8]byte{3}, at(0)}},
		"odd names":  {{"/new\nline \xff", [8]byte{}, at(1)}, {"/new\nline \xff/\"quoted\" ☃", [8]byte{255}, at(1)}},
		"not sorted": {{"/b/c", [8]byte{1}, at(1)}, {"/a", [8]byte{2}, at(2)}, {"/b", [8]byte{3}, at(3)}, {"/b/c", [8]byte{1}, at(1)}},
		"long":       {{"/" + strings.Repeat("x", 2*listingPart), [8]byte{1}, at(1)}, {"/" + strings.Repeat("x", listingPart), [8]byte{2}, at(1)}},
	}
	for i := range 5000 { // some parts
		files["many"] = append(files["many"], Listed{fmt.Sprintf("/d%d/file %d", i/100, i), [8]byte{byte(i), byte(i >> 8)}, at(int64(i * i))})
	}
	n := 0
	for name, want := range files {
		w := new(ListingWriter)
		for _, f := range want {
			w.Add(f)
		}
		of := key(fmt.Sprintf("%x", n))
		n++
		if err := s.PutListing(of, w); err != nil {
			t.Fatalf("%s: PutListing = %v", name, err)
		}
		l, err := s.Listing(of)
		if err != nil {
			t.Errorf("%s: Listing = %v", name, err)
			continue
		}
		if got := filesOf(l); !slices.EqualFunc(got, want, func(a, b Listed) bool {
			return a.Path == b.Path && a.Sum == b.Sum && a.ModTime.Equal(b.ModTime)
		}) {
			t.Errorf("%s: Listing has %d files, %.200q, want the %d that were added", name, len(got), got, len(want))
		}
	}
	if err := s.PutListing(key("f"), new(ListingWriter)); err != nil || s.HasListing(key("f")) {
		t.Errorf("PutListing of no files = %v, and is kept: %v", err, s.HasListing(key("f")))
	}
}

func filesOf(l *Listing) []Listed {
	var all []Listed
	for f := l.Files(); f.Next(); {
		all = append(all, Listed{string(f.Path), f.Sum, f.ModTime()})
	}
	return all
}

// A listing that is damaged is none, and goes.
func TestListingDamaged(t *testing.T) {
	s := open(t, t.TempDir())
	of := key("l")
	w := new(ListingWriter)
	for _, p := range []string{"/", "/a", "/a/b"} {
		w.Add(Listed{Path: p, ModTime: time.Unix(1, 0)})
	}
	if err := s.PutListing(of, w); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(s.listingPath(of))
	if err != nil {
		t.Fatal(err)
	}
	text, err := openRecord(good)
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{
		"empty": nil, "cut": good[:len(good)/2], "no line": sealRecord(nil), "another version": sealRecord([]byte("build listing 1\n0 0 \"/\"")),
		"shares more than there is": sealRecord([]byte(listingFormat + "\x01\x00" + "12345678" + "\x00")),
		"no end of the time":        sealRecord([]byte(listingFormat + "\x00\x01/" + "12345678" + "\xff")),
	}
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 4
		bad[fmt.Sprintf("flipped %d", i)] = b
	}
	for n := len(listingFormat) + 1; n < len(text); n++ {
		bad[fmt.Sprintf("the first %d bytes", n)] = sealRecord(bytes.Clone(text[:n]))
	}
	for name, data := range bad {
		if err := os.WriteFile(s.listingPath(of), data, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := s.Listing(of)
		if err == nil && strings.HasPrefix(name, "the first") && len(filesOf(l)) < 3 {
			continue // it ends with a file
		}
		var damaged *DamagedError
		if !errors.As(err, &damaged) || s.HasListing(of) {
			t.Errorf("%s: Listing = %v, want a DamagedError, and it removed (is there: %v)", name, err, s.HasListing(of))
		}
	}
}

// BenchmarkListingWriter says how many bytes a file of a listing takes.
func BenchmarkListingWriter(b *testing.B) {
	var files []Listed
	for i := range 100_000 {
		sum := sumOf(fmt.Sprint(i))
		files = append(files, Listed{fmt.Sprintf("/src/module%04d/component_%06d.ts", i/150, i), [8]byte(sum[:8]), time.Unix(1_700_000_000+int64(i/50), 0)})
	}
	var w *ListingWriter
	for b.Loop() {
		w = new(ListingWriter)
		for _, f := range files {
			w.Add(f)
		}
	}
	size := cap(w.now)
	for _, part := range w.full {
		size += cap(part)
	}
	b.ReportMetric(float64(size)/float64(len(files)), "B/file")
}
