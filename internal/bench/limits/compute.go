package limits

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// compute measures hashes and compressors, on one thread each, with programs
// and their sources.
func compute(ctx context.Context, _ string) ([]Limit, error) {
	data, err := sample(ctx, 64<<20)
	if err != nil {
		return nil, err
	}
	var all []Limit
	add := func(name string, f func() error) error {
		took, err := best(3, f, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, Limit{name + ", one thread", rate(len(data), took), "MB/s"})
		return ctx.Err()
	}
	var zipped, packed bytes.Buffer
	for _, m := range []struct {
		name string
		f    func() error
	}{
		{"SHA-256", func() error { sha256.Sum256(data); return nil }},
		{"BLAKE3", func() error { blake3.Sum256(data); return nil }},
		{"gzip level 1", func() error { return compressGzip(&zipped, data, gzip.BestSpeed) }},
		{"gzip default level", func() error { return compressGzip(&zipped, data, gzip.DefaultCompression) }},
		{"gunzip", func() error {
			r, err := gzip.NewReader(bytes.NewReader(zipped.Bytes()))
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r)
			return err
		}},
		{"zstd fastest level", func() error { return compressZstd(&packed, data, zstd.SpeedFastest) }},
		{"zstd default level", func() error { return compressZstd(&packed, data, zstd.SpeedDefault) }},
		{"unzstd", func() error {
			r, err := zstd.NewReader(bytes.NewReader(packed.Bytes()), zstd.WithDecoderConcurrency(1))
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(io.Discard, r)
			return err
		}},
	} {
		if err := add(m.name, m.f); err != nil {
			return all, err
		}
	}
	return all, nil
}

func compressGzip(to *bytes.Buffer, data []byte, level int) error {
	to.Reset()
	w, err := gzip.NewWriterLevel(to, level)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Close()
}

func compressZstd(to *bytes.Buffer, data []byte, level zstd.EncoderLevel) error {
	to.Reset()
	w, err := zstd.NewWriter(to, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Close()
}

// sample is so many bytes of the Go toolchain: its programs for a half, its
// sources for the other; less where it has less.
func sample(ctx context.Context, size int) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	goroot := strings.TrimSpace(string(out))
	var data bytes.Buffer
	for _, part := range []struct {
		dir string
		end int
	}{{"bin", size / 2}, {"src", size}} {
		err := filepath.WalkDir(filepath.Join(goroot, part.dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			if data.Len() >= part.end {
				return fs.SkipAll
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.CopyN(&data, f, int64(part.end-data.Len()))
			if err == io.EOF {
				err = nil
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return data.Bytes(), nil
}
