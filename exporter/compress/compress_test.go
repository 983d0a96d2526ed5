package compress

import (
	"bytes"
	stdgzip "compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// text is n bytes that compress about as well as a root filesystem, the same
// in every run.
func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 2000)
	for i := range words {
		w := make([]byte, 3+r.IntN(20))
		for j := range w {
			w[j] = byte(r.IntN(256))
		}
		words[i] = w
	}
	b := make([]byte, 0, n+32)
	for len(b) < n {
		b = append(b, words[r.IntN(1+r.IntN(len(words)))]...)
	}
	return b[:n]
}

func level(n int) *int { return &n }

func compressed(t testing.TB, cores int, m Method, data []byte, step int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewPool(cores).Writer(&b, m)
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 {
		n := min(step, len(data))
		if _, err := w.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	for _, m := range []Method{
		{}, {Type: Gzip, Level: level(0)}, {Type: Gzip, Level: level(9)},
		{Type: Zstd}, {Type: Zstd, Level: level(19)}, {Type: Uncompressed},
	} {
		sizes := []int{0, 1, 100_000}
		if m.Level == nil || *m.Level == 0 { // the others are slow
			block := gzipBlock
			if m.Type == Zstd {
				block = zstdBlock
			}
			sizes = append(sizes, block-1, block, block+1, 2*block+7)
		}
		for _, n := range sizes {
			data := text(n)
			packed := compressed(t, 2, m, data, 100_000)
			var r io.Reader = bytes.NewReader(packed)
			var err error
			switch m.Type {
			case "", Gzip:
				// The standard library's is the strictest reader around: one
				// member, nothing behind it.
				var z *stdgzip.Reader
				z, err = stdgzip.NewReader(bytes.NewReader(packed))
				if err == nil {
					z.Multistream(false)
					r = z
				}
			case Zstd:
				r, err = zstd.NewReader(r)
			}
			if err != nil {
				t.Fatalf("%s, %d bytes: %v", m.Recipe(), n, err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s, %d bytes: read %d bytes, %v, want the same", m.Recipe(), n, len(got), err)
			}
		}
	}
}

// gzip(1) and zstd(1) read it too.
func TestTools(t *testing.T) {
	data := text(2*zstdBlock + 5)
	for tool, m := range map[string]Method{"gzip": {}, "zstd": {Type: Zstd}} {
		c := exec.Command(tool, "-dc")
		c.Stdin = bytes.NewReader(compressed(t, 2, m, data, 1<<20))
		got, err := c.Output()
		if errors.Is(err, exec.ErrNotFound) {
			t.Logf("no %s here", tool)
			continue
		}
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s -d: %d bytes, %v, want %d", tool, len(got), err, len(data))
		}
	}
}

// The bytes depend neither on the number of cores, nor on how they are written,
// nor on what a compressor was used for before.
func TestSameBytes(t *testing.T) {
	for _, m := range []Method{{}, {Level: level(1)}, {Type: Zstd}, {Type: Zstd, Level: level(1)}, {Type: Zstd, Level: level(7)}} {
		data := text(2*gzipBlock + 12345)
		if m.Type == Zstd {
			data = text(zstdBlock + 12345)
		}
		want := sha256.Sum256(compressed(t, 1, m, data, len(data)))
		compressed(t, 2, m, text(300_000), 1000)
		for cores, step := range map[int]int{1: 4096, 2: 1 << 20, 7: 3_333_333} {
			if got := sha256.Sum256(compressed(t, cores, m, data, step)); got != want {
				t.Errorf("%s: %d cores, writes of %d: other bytes", m.Recipe(), cores, step)
			}
		}
	}
}

// A change of the compressor's output must change version: records of
// compressed layers depend on it.
func TestGolden(t *testing.T) {
	for _, tt := range []struct {
		m    Method
		size int
		want string
	}{
		{Method{}, gzipBlock + 99_999, "3fd6865f6a6bd3eb"},
		{Method{Type: Zstd}, zstdBlock + 99_999, "1696ff7278c556bc"},
		{Method{Type: Zstd, Level: level(7)}, gzipBlock + 99_999, "75a421d68e4e1010"},
	} {
		data := text(tt.size)
		got := fmt.Sprintf("%x", sha256.Sum256(compressed(t, 2, tt.m, data, 1<<20)))[:16]
		if got != tt.want {
			t.Errorf("%s: sha256 %s, want %s", tt.m.Recipe(), got, tt.want)
		}
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("no build information")
	}
	for _, d := range info.Deps {
		if d.Path == "github.com/klauspost/compress" && d.Version != "v"+version {
			t.Errorf("module is %s, version says %s", d.Version, version)
		}
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name  string
		level *int
		want  string // recipe
		err   string
	}{
		{"", nil, "gzip klauspost/" + version + " level=6 block=1048576", ""},
		{"gzip", level(9), "gzip klauspost/" + version + " level=9 block=1048576", ""},
		{"gzip", level(0), "gzip klauspost/" + version + " level=0 block=1048576", ""},
		{"zstd", nil, "zstd klauspost/" + version + " level=default block=8388608", ""},
		{"zstd", level(8), "zstd klauspost/" + version + " level=better", ""},
		{"uncompressed", nil, "uncompressed", ""},
		{"gzip", level(10), "", "gzip has 0 to 9"},
		{"zstd", level(0), "", "zstd has 1 to 22"},
		{"uncompressed", level(1), "", "has no levels"},
		{"estargz", nil, "", "not supported"},
		{"lz4", nil, "", `"lz4" is not known`},
	} {
		m, err := Parse(tt.name, tt.level)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Parse(%q, %v) = %v, want %q", tt.name, tt.level, err, tt.err)
			}
			continue
		}
		if err != nil || m.Recipe() != tt.want {
			t.Errorf("Parse(%q, %v) = %q, %v, want %q", tt.name, tt.level, m.Recipe(), err, tt.want)
		}
	}
}

type full struct{ room int }

var errFull = errors.New("no space left on device")

func (f *full) Write(p []byte) (int, error) {
	if f.room -= len(p); f.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// Buffers are used again as long as a writer is open, and go with the last one.
func TestMemory(t *testing.T) {
	for _, m := range []Method{{}, {Type: Zstd}} {
		p := NewPool(2)
		open := func(w io.Writer) io.WriteCloser {
			z, err := p.Writer(w, m)
			if err != nil {
				t.Fatal(err)
			}
			return z
		}
		a, b := open(io.Discard), open(&full{room: 20})
		data := text(6 * zstdBlock) // many more blocks than there is room for
		if _, err := a.Write(data); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Write(data[:2*zstdBlock]); err != nil && !errors.Is(err, errFull) {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); !errors.Is(err, errFull) {
			t.Errorf("%s: Close = %v, want %v", m.Recipe(), err, errFull)
		}
		if got, most := p.memory.made, 2*cap(p.room)+2*2; got > most {
			t.Errorf("%s: %d buffers were made, want %d at most", m.Recipe(), got, most)
		}
		if p.memory.writers != 0 || p.memory.free != nil {
			t.Errorf("%s: %d writers and %d kinds of buffers are left, want none", m.Recipe(), p.memory.writers, len(p.memory.free))
		}
	}
}

func TestFullDisk(t *testing.T) {
	data := text(3 * zstdBlock)
	for _, m := range []Method{{Level: level(1)}, {Type: Zstd}, {Type: Zstd, Level: level(7)}} {
		w, err := NewPool(2).Writer(&full{room: 100_000}, m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(w, bytes.NewReader(data))
		err = errors.Join(err, w.Close())
		if !errors.Is(err, errFull) {
			t.Errorf("%s: %v, want %v", m.Recipe(), err, errFull)
		}
	}
}

func BenchmarkCompress(b *testing.B) {
	data := text(32 << 20)
	for _, m := range []Method{{Level: level(1)}, {}, {Level: level(6)}, {Level: level(9)}, {Type: Zstd}, {Type: Zstd, Level: level(10)}} {
		for _, cores := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s %d cores", m.Recipe(), cores), func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				n := 0
				for b.Loop() {
					n = len(compressed(b, cores, m, data, 1<<20))
				}
				b.ReportMetric(100*float64(n)/float64(len(data)), "%size")
			})
		}
	}
}
