package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// Contexts: the same seed makes the same bytes.

func write(dir, name, text string) error {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

func random(seed uint64) *rand.ChaCha8 {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// textTree writes dirs directories of per files, 512 to 10,000 bytes each, half
// of it words and half random.
func textTree(root string, dirs, per int, seed uint64) error {
	source := random(seed)
	r := rand.New(source)
	noise := make([]byte, 1<<20)
	_, _ = source.Read(noise) // never fails
	var words strings.Builder
	for words.Len() < 1<<20 {
		fmt.Fprintf(&words, "%x ", r.Uint32N(1<<20))
	}
	for d := range dirs {
		dir := filepath.Join(root, fmt.Sprintf("d%03d", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for i := range per {
			size := 512 + r.IntN(10000-512)
			half := size / 2
			a, b := r.IntN(len(noise)-half), r.IntN(words.Len()-size)
			text := fmt.Appendf(nil, "%016d %d/%d\n%s", 0, d, i, words.String()[b:b+size-half])
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%03d.txt", i)), append(text, noise[a:a+half]...), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// manySteps is the context of twentySteps.
func manySteps(_ context.Context, dir string, _ int) error {
	for i := range 6 {
		if err := write(dir, fmt.Sprintf("conf/c%d.conf", i), strings.Repeat(fmt.Sprintf("conf %d\n", i), 20)); err != nil {
			return err
		}
	}
	return textTree(filepath.Join(dir, "src"), 100, 100, 1)
}

func largeFiles(_ context.Context, dir string, _ int) error { return bigFiles(dir, 4) }

// bigFiles writes n files of 256 MiB.
func bigFiles(dir string, n int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	source := random(5)
	for i := range n {
		if err := writeRandom(filepath.Join(dir, fmt.Sprintf("big%d.bin", i)), source, 256<<20); err != nil {
			return err
		}
	}
	return nil
}

func smallFiles(_ context.Context, dir string, _ int) error {
	source := random(6)
	for d := range 500 {
		sub := filepath.Join(dir, "src", fmt.Sprintf("d%03d", d))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		for i := range 100 {
			if err := writeRandom(filepath.Join(sub, fmt.Sprintf("f%03d.bin", i)), source, 4096); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeRandom(path string, source io.Reader, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(f, source, size); err != nil {
		return err
	}
	return f.Close()
}

// stamp makes every file's contents new: they begin with the serial.
func stamp(dir, serial string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == "Dockerfile" {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(serial), 0); err != nil {
			return err
		}
		return f.Close()
	})
}

// appendToOne adds a line to one of textTree's 100 by 100 files.
func appendToOne(dir, serial string) error {
	name := fmt.Sprintf("src/d%03d/f%03d.txt", rand.IntN(100), rand.IntN(100))
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, serial); err != nil {
		return err
	}
	return f.Close()
}
