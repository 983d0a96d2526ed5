package exporter

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
)

func newFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Whoever reads it, at whatever pace and from whenever on, gets all of it.
func TestGrowing(t *testing.T) {
	want := make([]byte, 500_000)
	for i := range want {
		want[i] = byte(rand.IntN(256))
	}
	g := newGrowing(newFile(t))
	var wg sync.WaitGroup
	read := func(size int) {
		wg.Go(func() {
			r, err := g.open()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			var got bytes.Buffer
			if _, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{r}, make([]byte, size)); err != nil || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("read by %d: %d bytes, %v, want %d", size, got.Len(), err, len(want))
			}
		})
	}
	read(100_000)
	for rest := want; len(rest) > 0; {
		n := min(1+rand.IntN(50_000), len(rest))
		if _, err := g.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
		if len(rest) < 250_000 && len(rest)+n >= 250_000 {
			read(777)
		}
	}
	g.end(blob{desc: oci.Descriptor{Size: int64(len(want))}}, nil)
	read(40_000)
	if d, err := g.desc(t.Context()); err != nil || d.Size != int64(len(want)) {
		t.Errorf("desc = %v, %v, want the size %d", d, err, len(want))
	}
	wg.Wait()
}

func TestGrowingFails(t *testing.T) {
	bad := errors.New("bad")
	for _, tt := range []struct {
		name string
		end  func(g *growing, r io.Closer)
		want string
	}{
		{"an error", func(g *growing, _ io.Closer) { g.end(blob{}, bad) }, "bad"},
		{"closed", func(_ *growing, r io.Closer) { r.Close() }, "closed"},
	} {
		g := newGrowing(newFile(t))
		if _, err := g.Write([]byte("abc")); err != nil {
			t.Fatal(err)
		}
		r, err := g.open()
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(10*time.Millisecond, func() { tt.end(g, r) })
		if got, err := io.ReadAll(r); string(got) != "abc" || err == nil || err.Error() != tt.want {
			t.Errorf("%s: read %q, %v, want abc and %q", tt.name, got, err, tt.want)
		}
		r.Close()
	}
}

// What was read once is not kept: it takes no room, and is not read as zeros.
func TestGrowingOnce(t *testing.T) {
	f := newFile(t)
	g := newGrowing(f)
	want := make([]byte, 5*freeStep+123)
	rand.NewChaCha8([32]byte{}).Read(want)
	if _, err := g.Write(want); err != nil {
		t.Fatal(err)
	}
	g.end(blob{}, nil)

	// A try that came to nothing, before anything was freed.
	r, err := g.openOnce()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, r, freeStep/2); err != nil {
		t.Fatal(err)
	}
	again, err := g.openOnce()
	if err != nil {
		t.Fatal(err)
	}
	// The one before it is of no use any more, and takes nothing away from it.
	if _, err := io.CopyN(io.Discard, r, 2*freeStep); err != nil {
		t.Fatal(err)
	}
	if !g.whole() {
		t.Error("the reader that another one follows has freed what that will read")
	}
	got, err := io.ReadAll(again)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v, want the same %d", len(got), err, len(want))
	}
	r.Close()
	again.Close()

	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if got, most := st.Blocks*512, int64(freeStep); got > most {
		t.Errorf("the file takes %d bytes, want %d at most", got, most)
	}
	for name, open := range map[string]func() (io.ReadCloser, error){"open": g.open, "openOnce": g.openOnce} {
		if _, err := open(); !errors.Is(err, errFreed) {
			t.Errorf("%s = %v, want %v", name, err, errFreed)
		}
	}
}

// A layer without a diff ID is read once: to be sealed, compressed and sent.
func TestSeal(t *testing.T) {
	host, client := startRegistry(t)
	for name, out := range map[string]Output{
		"push": parse(t, "type=registry,name="+host+"/sealed"),
		"both": parse(t, "type=image,push=true,name="+host+"/both"),
		"oci":  parse(t, "type=oci,dest="+t.TempDir()+"/x"),
	} {
		l, opened := built(name, 2<<20)
		diffID, size := l.DiffID, l.TarSize
		l.DiffID, l.TarSize = "", 0
		e, err := New(out, Options{Registry: client(), Store: store(t), Temp: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		s := e.(interface {
			Seal(ctx context.Context, l oci.Layer) (oci.Layer, bool, error)
		})
		got, ok, err := s.Seal(t.Context(), l)
		if err != nil || !ok || got.DiffID != diffID || got.TarSize != size {
			t.Errorf("%s: Seal = %v, %v, %v, want %s of %d bytes", name, got, ok, err, diffID, size)
		}
		if _, err := e.Export(t.Context(), resultOf(nil, imageOf("amd64", got))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if n := opened.Load(); n != 1 {
			t.Errorf("%s: the layer was read %d times, want once", name, n)
		}
	}
	valid(t, host+"/sealed")
	valid(t, host+"/both")
}

// What reads no tar to compress it cannot seal, and says so.
func TestSealDoesNot(t *testing.T) {
	l, opened := built("x", 30)
	known := l
	l.DiffID = ""
	gone := errors.New("gone")
	broken := l
	broken.ID, broken.Tar = "broken", func(context.Context) (io.ReadCloser, error) { return nil, gone }
	for _, tt := range []struct {
		out   string
		layer oci.Layer
		want  error
	}{
		{"type=image", l, nil}, {"type=oci,dest=x,compression=" + compress.Uncompressed, l, nil},
		{"type=oci,dest=x", known, nil}, {"type=oci,dest=x", broken, gone},
	} {
		e, err := New(parse(t, tt.out), Options{Store: store(t), Temp: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		if _, ok, err := e.(*images).Seal(t.Context(), tt.layer); ok || !errors.Is(err, tt.want) {
			t.Errorf("%s: Seal of %s = %v, %v, want false, %v", tt.out, tt.layer.ID, ok, err, tt.want)
		}
		e.Close()
	}
	if n := opened.Load(); n != 0 {
		t.Errorf("the layer was read %d times", n)
	}
}
