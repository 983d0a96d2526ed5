package layer

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

// sealedList is changes as a list of entries.
func sealedList(t testing.TB, changes []tree.Change) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteEntries(&b, changes); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Intact goes through the same lists as ReadEntries, with all that can be in
// them.
func TestIntactReadsAllEntries(t *testing.T) {
	needRoot(t)
	changes, dir := sample(t)
	for i := range changes {
		c := &changes[i]
		if c.Removed || c.Type() != unix.S_IFREG {
			continue
		}
		// The sample's times are made up.
		if err := os.Chtimes(filepath.Join(dir, c.Path), c.ModTime, c.ModTime); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	list := sealedList(t, changes)
	for n := range list {
		if err := Intact(bytes.NewReader(list[:n]), dir); !errors.Is(err, ErrDamaged) {
			t.Fatalf("Intact of a list cut to %d bytes = %v, want %v", n, err, ErrDamaged)
		}
	}
}

func TestIntactTimes(t *testing.T) {
	at := func(sec, nsec int64) time.Time { return time.Unix(sec, nsec) }
	tests := []struct {
		name           string
		recorded, disk time.Time
		ok             bool
	}{
		{"the same", at(1_700_000_000, 123_456_789), at(1_700_000_000, 123_456_789), true},
		{"a nanosecond later", at(1_700_000_000, 123_456_789), at(1_700_000_000, 123_456_790), false},
		{"another second", at(1_700_000_000, 0), at(1_700_000_001, 0), false},
		{"in whole seconds", at(1_700_000_000, 123_456_789), at(1_700_000_000, 0), true},
		{"in microseconds", at(1_700_000_000, 123_456_789), at(1_700_000_000, 123_456_000), true},
		{"in hundreds of nanoseconds", at(1_700_000_000, 123_456_789), at(1_700_000_000, 123_456_700), true},
		{"more than what was recorded", at(1_700_000_000, 0), at(1_700_000_000, 1), false},
		{"before 1901", at(-3_000_000_000, 0), at(-2_147_483_648, 0), true},
		{"after 2038", at(5_000_000_000, 0), at(2_147_483_647, 0), true},
	}
	for _, tt := range tests {
		s := stamp{sec: tt.recorded.Unix(), nsec: int64(tt.recorded.Nanosecond())}
		if got := s.sameTime(tt.disk.Unix(), int64(tt.disk.Nanosecond())); got != tt.ok {
			t.Errorf("%s: sameTime of %v on disk and %v recorded = %v, want %v", tt.name, tt.disk, tt.recorded, got, tt.ok)
		}
	}
}

func BenchmarkIntact(b *testing.B) {
	dir := b.TempDir()
	var changes []tree.Change
	for d := range 100 {
		name := "/dir" + string(rune('0'+d/10)) + string(rune('0'+d%10))
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			b.Fatal(err)
		}
		changes = append(changes, tree.Change{Entry: tree.Entry{Path: name, Mode: unix.S_IFDIR | 0o755}})
		for f := range 100 {
			p := name + "/file" + string(rune('0'+f/10)) + string(rune('0'+f%10)) + ".js"
			if err := os.WriteFile(filepath.Join(dir, p), []byte("hello"), 0o644); err != nil {
				b.Fatal(err)
			}
			st, err := os.Stat(filepath.Join(dir, p))
			if err != nil {
				b.Fatal(err)
			}
			changes = append(changes, tree.Change{Entry: tree.Entry{Path: p, Mode: unix.S_IFREG | 0o644, Size: 5, ModTime: st.ModTime(), Digest: sumOf("hello")}})
		}
	}
	list := sealedList(b, changes)
	b.ReportMetric(float64(len(changes)), "files")
	for b.Loop() {
		if err := Intact(bytes.NewReader(list), dir); err != nil {
			b.Fatal(err)
		}
	}
}
