package readahead

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/iotest"
	"time"
)

func random(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.IntN(256))
	}
	return b
}

func TestRead(t *testing.T) {
	for _, n := range []int{0, 1, handOver, blockSize - 1, blockSize, 3*blockSize + 7, 9 * blockSize} {
		want := random(n)
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"whole":          func(r io.Reader) io.Reader { return r },
			"half":           iotest.HalfReader,
			"data and error": iotest.DataErrReader,
		} {
			a := New(wrap(bytes.NewReader(want)))
			got, err := io.ReadAll(iotest.HalfReader(a))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: Read of %d bytes = %d bytes, %v, want the same", name, n, len(got), err)
			}
			if _, err := a.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("%s: Read after the end = %v, want EOF", name, err)
			}
			a.Close()

			a = New(wrap(bytes.NewReader(want)))
			var b bytes.Buffer
			if k, err := a.WriteTo(&b); err != nil || k != int64(n) || !bytes.Equal(b.Bytes(), want) {
				t.Errorf("%s: WriteTo of %d bytes = %d, %v, want the same", name, n, k, err)
			}
			a.Close()
		}
	}
}

func TestError(t *testing.T) {
	bad := errors.New("bad")
	want := random(2*blockSize + 5)
	a := New(io.MultiReader(bytes.NewReader(want), iotest.ErrReader(bad)))
	defer a.Close()
	got, err := io.ReadAll(a)
	if !errors.Is(err, bad) || !bytes.Equal(got, want) {
		t.Errorf("Read = %d bytes, %v, want %d and %v", len(got), err, len(want), bad)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, bad) {
		t.Errorf("Read again = %v, want %v", err, bad)
	}
}

// counting counts what is read after stop.
type counting struct {
	stopped bool
	late    int
}

func (c *counting) Read(p []byte) (int, error) {
	if c.stopped {
		c.late++
	}
	return len(p), nil
}

func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for i := range 50 {
		c := &counting{}
		a := New(c)
		if i%2 == 0 {
			if _, err := io.CopyN(io.Discard, a, int64(i)*10_000); err != nil {
				t.Fatal(err)
			}
		}
		a.Close()
		c.stopped = true // which the race detector sees, if it is read at the same time
		a.Close()
		if _, err := a.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("Read after Close = %v, want an error", err)
		}
		if c.late > 0 {
			t.Errorf("the reader below was read %d times after Close", c.late)
		}
	}
	for i := 0; runtime.NumGoroutine() > before; i++ {
		if i == 100 {
			t.Fatalf("%d goroutines are left, of %d", runtime.NumGoroutine(), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// What is there goes to who waits, before a block is full.
func TestHandOver(t *testing.T) {
	pr, pw := io.Pipe()
	a := New(pr)
	go pw.Write(make([]byte, handOver))
	if n, err := a.Read(make([]byte, blockSize)); n != handOver || err != nil {
		t.Errorf("Read = %d, %v, want %d", n, err, handOver)
	}
	pw.Close()
	a.Close()
}
