package gunzip

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"
)

// samples are data of several kinds, the same in every run.
func samples() map[string][]byte {
	r := rand.New(rand.NewPCG(5, 6))
	noise := make([]byte, 100_000)
	for i := range noise {
		noise[i] = byte(r.IntN(256))
	}
	words := make([][]byte, 3000)
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(12))
		for k := range words[i] {
			words[i][k] = byte('a' + r.IntN(26))
		}
	}
	var text, skewed []byte
	for len(text) < 300_000 {
		text = append(append(text, words[r.IntN(1+r.IntN(len(words)))]...), ' ')
	}
	for len(skewed) < 150_000 { // literals with codes of all lengths
		b := byte(0)
		for b < 255 && r.IntN(2) == 0 {
			b++
		}
		skewed = append(skewed, b*37)
	}
	far := append(append(bytes.Clone(noise[:32768]), noise[:32768]...), noise[1:32768]...)
	return map[string][]byte{
		"nothing": nil, "a byte": []byte("x"), "noise": noise, "text": text, "skewed": skewed, "far": far,
		"zeros": make([]byte, 300_000), "period 3": bytes.Repeat([]byte("abc"), 50_000), "period 7": bytes.Repeat([]byte("abcdefg"), 30_000),
		"long repeats": bytes.Repeat(noise[:1000], 150),
	}
}

func packed(t testing.TB, level int, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReader(t *testing.T) {
	for name, want := range samples() {
		for _, level := range []int{stdgzip.HuffmanOnly, 0, 1, 6, 9} {
			z := packed(t, level, want)
			for how, wrap := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "half": iotest.HalfReader,
				"bytes": iotest.OneByteReader, "with the end": iotest.DataErrReader,
			} {
				if how == "bytes" && len(z) > 50_000 {
					continue // that takes long
				}
				got, err := io.ReadAll(NewReader(wrap(bytes.NewReader(z))))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s, level %d, read %s: %d bytes, %v, want %d", name, level, how, len(got), err, len(want))
				}
			}
			var b bytes.Buffer
			if n, err := NewReader(bytes.NewReader(z)).WriteTo(&b); err != nil || n != int64(len(want)) || !bytes.Equal(b.Bytes(), want) {
				t.Errorf("%s, level %d: WriteTo = %d, %v, want %d", name, level, n, err, len(want))
			}
		}
	}
}

// Members follow each other, with all that their headers may have.
func TestMembers(t *testing.T) {
	var z, want []byte
	for name, data := range samples() {
		var b bytes.Buffer
		w := stdgzip.NewWriter(&b)
		w.Name, w.Comment, w.Extra = name, "a comment", []byte("extra")
		w.Write(data)
		w.Close()
		z, want = append(z, b.Bytes()...), append(want, data...)
	}
	// One whose header has a checksum.
	header := []byte{0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 255}
	header = binary.LittleEndian.AppendUint16(header, uint16(crc32.ChecksumIEEE(header)))
	z = append(append(z, header...), packed(t, 6, []byte("more"))[10:]...)
	want = append(want, "more"...)
	got, err := io.ReadAll(NewReader(bytes.NewReader(z)))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("Read of several members = %d bytes, %v, want %d", len(got), err, len(want))
	}
}

func TestDamaged(t *testing.T) {
	text := samples()["text"][:100_000]
	good := packed(t, 6, text)
	change := func(at int, b byte) []byte {
		z := bytes.Clone(good)
		z[(at+len(z))%len(z)] ^= b
		return z
	}
	bad := errors.New("bad")
	block := func(deflate ...byte) []byte { return append(bytes.Clone(good[:10]), deflate...) }
	for _, tt := range []struct {
		name string
		in   io.Reader
		want error
	}{
		{"magic", bytes.NewReader(change(0, 1)), ErrHeader},
		{"method", bytes.NewReader(change(2, 1)), ErrHeader},
		{"checksum", bytes.NewReader(change(-6, 1)), ErrChecksum},
		{"size", bytes.NewReader(change(-1, 1)), ErrChecksum},
		{"garbage behind it", bytes.NewReader(append(bytes.Clone(good), "this is not gzip"...)), ErrHeader},
		{"checksum of the header", bytes.NewReader(change(3, 2)), ErrHeader},
		{"cut header", bytes.NewReader(good[:5]), io.ErrUnexpectedEOF},
		{"cut", bytes.NewReader(good[:len(good)/2]), io.ErrUnexpectedEOF},
		{"cut in the trailer", bytes.NewReader(good[:len(good)-3]), io.ErrUnexpectedEOF},
		{"cut before the trailer", bytes.NewReader(good[:len(good)-8]), io.ErrUnexpectedEOF},
		{"reader fails", io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(bad)), bad},
		{"reader fails at the end", io.MultiReader(bytes.NewReader(good), iotest.ErrReader(bad)), bad},
		{"reader gives nothing", iotest.ErrReader(nil), io.ErrNoProgress},
		{"unknown type of block", bytes.NewReader(block(0x07)), CorruptError(11)},
		{"stored, wrong length", bytes.NewReader(block(1, 5, 0, 5, 0)), CorruptError(15)},
		{"nothing to refer to", bytes.NewReader(block(0x03|0x02<<3&0xff, 0x02, 0, 0, 0)), nil},
	} {
		got, err := io.ReadAll(NewReader(tt.in))
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: Read = %d bytes, %v, want %v", tt.name, len(got), err, tt.want)
		}
		if !bytes.HasPrefix(text, got) && len(got) > len(text) {
			t.Errorf("%s: other bytes before the error", tt.name)
		}
	}
}

// deflated are streams that no compressor makes, some of which are good: the
// standard library says which.
func deflated() [][]byte {
	var all [][]byte
	r := rand.New(rand.NewPCG(7, 8))
	for name, data := range samples() {
		if len(data) > 20_000 {
			data = data[:20_000]
		}
		var b bytes.Buffer
		w, _ := flate.NewWriter(&b, 1+len(name)%9)
		w.Write(data)
		w.Close()
		all = append(all, b.Bytes())
		for range 150 {
			z := bytes.Clone(b.Bytes())
			for range 1 + r.IntN(3) {
				z[r.IntN(min(len(z), 1+r.IntN(len(z))))] ^= 1 << r.IntN(8)
			}
			all = append(all, z)
		}
	}
	return all
}

// member is a deflate stream as a gzip member whose checksum fits.
func member(deflate, data []byte) []byte {
	z := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflate...)
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(z, crc32.ChecksumIEEE(data)), uint32(len(data)))
}

// compare inflates a stream with this package and with the standard library.
func compare(deflate []byte) error {
	in := bytes.NewReader(deflate)
	want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(in), 4<<20))
	z := member(deflate[:len(deflate)-in.Len()], want)
	got, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(z)), 4<<20))
	n := min(len(got), len(want))
	if !bytes.Equal(got[:n], want[:n]) {
		return fmt.Errorf("other bytes: %d of them, %d of the standard library's", len(got), len(want))
	}
	if wantErr == nil && (err != nil || len(got) != len(want)) {
		return fmt.Errorf("%d bytes, %v, want %d", len(got), err, len(want))
	}
	if wantErr != nil && err == nil {
		return fmt.Errorf("%d bytes, want an error like %v", len(got), wantErr)
	}
	return nil
}

func TestAsTheStandardLibrary(t *testing.T) {
	for i, z := range deflated() {
		if err := compare(z); err != nil {
			t.Errorf("stream %d: %v", i, err)
		}
	}
}

func FuzzInflate(f *testing.F) {
	for i, z := range deflated() {
		if i%100 == 0 && len(z) < 2000 {
			f.Add(z)
		}
	}
	f.Add([]byte{0x4b, 0x04, 0x00})
	f.Fuzz(func(t *testing.T, deflate []byte) {
		if err := compare(deflate); err != nil {
			t.Errorf("%x: %v", deflate, err)
		}
	})
}

// FuzzReader is for what surrounds deflate.
func FuzzReader(f *testing.F) {
	f.Add(packed(f, 6, []byte("some text, some text")))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(in)), 4<<20))
		var want []byte
		z, wantErr := stdgzip.NewReader(bytes.NewReader(in))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(z, 4<<20))
		}
		if wantErr == io.EOF && len(in) == 0 {
			wantErr = nil // an empty file is no member
		}
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("Read of %x = %d bytes, %v, want %d, %v", in, len(got), err, len(want), wantErr)
		}
	})
}

// BenchmarkReader takes GUNZIP_FILE, where that is set.
func BenchmarkReader(b *testing.B) {
	data := packed(b, 6, samples()["text"])
	if name := os.Getenv("GUNZIP_FILE"); name != "" {
		var err error
		if data, err = os.ReadFile(name); err != nil {
			b.Fatal(err)
		}
	}
	for name, open := range map[string]func() io.Reader{
		"this":     func() io.Reader { return NewReader(bytes.NewReader(data)) },
		"standard": func() io.Reader { z, _ := stdgzip.NewReader(bytes.NewReader(data)); return z },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				n, err := io.Copy(io.Discard, struct{ io.Reader }{open()})
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}
