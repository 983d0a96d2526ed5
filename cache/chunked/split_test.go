package chunked

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"testing"
	"testing/iotest"

	"github.com/zeebo/blake3"
)

func sumOf(b []byte) Sum { return blake3.Sum256(b) }

// cuts are the chunks of data.
func cuts(t testing.TB, s *splitter, data []byte) [][]byte {
	t.Helper()
	var out [][]byte
	err := s.split(bytes.NewReader(data), int64(len(data)), func(b []byte) error {
		out = append(out, bytes.Clone(b))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func newTestSplitter(t testing.TB) *splitter {
	t.Helper()
	s, err := newSplitter()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestChunksAreTheContent(t *testing.T) {
	s := newTestSplitter(t)
	big := noise(1, 3<<20)
	for _, data := range [][]byte{
		nil, {1}, big[:minChunk-1], big[:minChunk], big[:minChunk+1], big[:avgChunk], big[:maxChunk], big[:maxChunk+1], big,
		make([]byte, 300_000), bytes.Repeat([]byte("abc"), 100_000),
	} {
		got := cuts(t, s, data)
		equalBytes(t, fmt.Sprintf("the chunks of %d bytes together", len(data)), bytes.Join(got, nil), data)
		for i, c := range got {
			if len(c) == 0 || len(c) > maxChunk || len(c) < minChunk && i < len(got)-1 {
				t.Errorf("chunk %d of %d has %d bytes, want %d to %d", i, len(got), len(c), minChunk, maxChunk)
			}
		}
	}
	if n := len(big) / len(cuts(t, s, big)); n < avgChunk*3/4 || n > avgChunk*3/2 {
		t.Errorf("chunks have %d bytes on average, want about %d", n, avgChunk)
	}
}

// Where content is cut is part of the form: other cuts share nothing with what
// has been put out before. This fails if a library's new version cuts elsewhere.
func TestCutsStayWhereTheyAre(t *testing.T) {
	h := blake3.New()
	n := 0
	for _, c := range cuts(t, newTestSplitter(t), noise(7, 1<<20)) {
		fmt.Fprintf(h, "%d ", len(c))
		n++
	}
	const want = "228 b859ceb385e051f4"
	if got := fmt.Sprint(n, " ", hex.EncodeToString(h.Sum(nil)[:8])); got != want {
		t.Errorf("cuts are %s, want %s", got, want)
	}
}

// What is inserted, removed or overwritten costs the chunks around it.
func TestChangesAreLocal(t *testing.T) {
	s := newTestSplitter(t)
	data := noise(2, 4<<20)
	have := map[Sum]bool{}
	for _, c := range cuts(t, s, data) {
		have[sumOf(c)] = true
	}
	mid := 2 << 20
	for _, tt := range []struct {
		name string
		data []byte
		most int
	}{
		{"a byte at the front", append([]byte{1}, data...), 64 << 10},
		{"a byte in the middle", append(append(bytes.Clone(data[:mid]), 1), data[mid:]...), 128 << 10},
		{"100 bytes removed", append(bytes.Clone(data[:mid]), data[mid+100:]...), 128 << 10},
		{"a page overwritten", append(append(bytes.Clone(data[:mid]), noise(3, 4096)...), data[mid+4096:]...), 128 << 10},
		{"appended", append(bytes.Clone(data), noise(4, 1000)...), 64 << 10},
	} {
		fresh := 0
		for _, c := range cuts(t, s, tt.data) {
			if !have[sumOf(c)] {
				fresh += len(c)
			}
		}
		if fresh == 0 || fresh > tt.most {
			t.Errorf("%s: %d bytes of new chunks, want 1 to %d", tt.name, fresh, tt.most)
		}
	}
}

func TestCutsDoNotDependOnReads(t *testing.T) {
	s := newTestSplitter(t)
	data := noise(5, 300_000)
	want := cuts(t, s, data)
	i := 0
	err := s.split(iotest.OneByteReader(bytes.NewReader(data)), int64(len(data)), func(b []byte) error {
		equalBytes(t, fmt.Sprint("chunk ", i), b, want[i])
		i++
		return nil
	})
	if err != nil || i != len(want) {
		t.Errorf("%d chunks, %v, want %d", i, err, len(want))
	}
	broken := iotest.TimeoutReader(iotest.HalfReader(bytes.NewReader(data)))
	if err := s.split(broken, int64(len(data)), func([]byte) error { return nil }); err == nil {
		t.Error("an error of the reader is lost")
	}
}
