package chunked

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/internal/oci"
)

// PackSize is how many bytes of chunks make a pack. It is small enough for a
// pack to be sent again when a connection breaks, and large enough for a mount
// to be some dozens of them.
const PackSize = 16 << 20

// Pack is a pack, finished, in a file that is its receiver's to remove.
type Pack struct {
	Chunks []Chunk
	Digest oci.Digest // sha256, of the file
	Size   int64      // of the file, bytes
	File   string
}

// Packer collects chunks in packs. It is not safe for concurrent use.
type Packer struct {
	dir  string
	salt []byte
	done func(Pack)

	pack  Pack
	bytes int
	f     *os.File // of the pack that has been begun; nil: none
	buf   *bufio.Writer
	hash  hash.Hash
	z     *zstd.Encoder
}

// NewPacker makes packs as files in the directory dir, and calls done for each
// that is finished. With salt they are other blobs than the same packs without it;
// it may be nil.
func NewPacker(dir string, salt []byte, done func(Pack)) *Packer {
	return &Packer{dir: dir, salt: salt, done: done}
}

// salted is the beginning of a blob that salt makes another one: a frame of zstd's
// that is skipped (RFC 8878, 3.1.2).
func salted(salt []byte) []byte {
	if len(salt) == 0 {
		return nil
	}
	b := binary.LittleEndian.AppendUint32(nil, 0x184D2A50)
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(salt))), salt...)
}

// Add adds a chunk. data is not kept.
func (p *Packer) Add(c Chunk, data []byte) error {
	if p.f == nil {
		if err := p.begin(); err != nil {
			return err
		}
	}
	if _, err := p.z.Write(data); err != nil {
		return err
	}
	p.pack.Chunks = append(p.pack.Chunks, c)
	if p.bytes += len(data); p.bytes >= PackSize {
		return p.finish()
	}
	return nil
}

func (p *Packer) begin() (err error) {
	if p.f, err = os.CreateTemp(p.dir, "pack-*"); err != nil {
		return err
	}
	p.pack, p.bytes, p.hash = Pack{File: p.f.Name()}, 0, sha256.New()
	p.buf = bufio.NewWriterSize(io.MultiWriter(p.f, p.hash), 256<<10)
	_, _ = p.buf.Write(salted(p.salt)) // into the buffer
	if p.z != nil {
		p.z.Reset(p.buf)
		return nil
	}
	p.z, err = zstd.NewWriter(p.buf, zstd.WithEncoderConcurrency(1))
	return err
}

func (p *Packer) finish() error {
	err := p.z.Close()
	if err == nil {
		err = p.buf.Flush()
	}
	if err == nil {
		p.pack.Size, err = p.f.Seek(0, io.SeekCurrent)
	}
	if cerr := p.f.Close(); err == nil {
		err = cerr
	}
	p.f = nil
	if err != nil {
		os.Remove(p.pack.File)
		return err
	}
	p.pack.Digest = digest.NewDigest(digest.SHA256, p.hash)
	p.done(p.pack)
	return nil
}

// Finish ends the pack that has been begun.
func (p *Packer) Finish() error {
	if p.f == nil {
		return nil
	}
	return p.finish()
}

// Abandon removes the pack that has been begun, if there is one.
func (p *Packer) Abandon() {
	if p.f != nil {
		p.f.Close()
		os.Remove(p.pack.File)
		p.f = nil
	}
}
