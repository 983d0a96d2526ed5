package exporter

import (
	"archive/tar"
	"bytes"
	"io"
	"time"
)

// rawTar writes a tar. Unlike a tar.Writer it hands the writer below over for a
// file's content, so that the kernel copies it from one file to the other.
type rawTar struct{ w io.Writer }

const tarBlock = 512

func (t rawTar) header(h tar.Header) error {
	h.ModTime = time.Unix(0, 0)
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		return err
	}
	_, err := t.w.Write(b.Bytes())
	return err
}

func (t rawTar) dir(name string) error {
	return t.header(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755})
}

// file writes a file; content writes its size bytes.
func (t rawTar) file(name string, mode, size int64, content func(io.Writer) error) error {
	if err := t.header(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size}); err != nil {
		return err
	}
	if err := content(t.w); err != nil {
		return err
	}
	_, err := t.w.Write(make([]byte, -size&(tarBlock-1)))
	return err
}

func (t rawTar) end() error {
	_, err := t.w.Write(make([]byte, 2*tarBlock))
	return err
}
