package compress

import (
	"io"
	"sync"
)

// codec compresses blocks on their own.
type codec struct {
	size   int // of a block, in bytes
	window int // so much of the block before is known to each; in bytes
	// pack appends to out what block, which comes after dict, is compressed.
	pack func(out, dict, block []byte, last bool) ([]byte, error)
}

// blockWriter compresses blocks side by side and writes them in their order. The
// output depends on the codec alone.
type blockWriter struct {
	codec
	pool *Pool

	block  []byte // being filled; with the dictionary in front
	dict   int    // length of the dictionary
	pooled bool   // block is of the pool's memory

	queue chan chan packed // blocks in their order; the reader is drain
	done  chan struct{}    // closed by drain
	ended bool

	mu  sync.Mutex
	err error
}

type packed struct {
	data []byte
	buf  []byte // of the pool's memory: data, where that is not too long; nil: none
	err  error
}

func (p *Pool) blocks(w io.Writer, c codec) *blockWriter {
	b := &blockWriter{
		codec: c, pool: p,
		queue: make(chan chan packed, cap(p.room)+1), // never full
		done:  make(chan struct{}),
	}
	p.memory.enter()
	go b.drain(w)
	return b
}

// buffer is one for a block with the one before it, or for what a block is
// compressed: what cannot be is hardly larger.
func (b *blockWriter) buffer() []byte { return b.pool.memory.get(b.window + b.size + b.size/128) }

// Write fails after the first failure of the underlying writer.
func (b *blockWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if len(b.block)-b.dict == b.size {
			if err := b.failed(); err != nil {
				return 0, err
			}
			b.send(false)
		}
		m := min(len(p), b.size-(len(b.block)-b.dict))
		b.grow(m)
		b.block = append(b.block, p[:m]...)
		p = p[m:]
	}
	return n, nil
}

// grow makes room for n bytes more. What gets beyond a small layer is made as
// large as it can get, at once.
func (b *blockWriter) grow(n int) {
	const small = 128 << 10
	if need := len(b.block) + n; need > max(cap(b.block), small) {
		b.block = append(b.buffer(), b.block...)
		b.pooled = true
	}
}

// Close compresses the rest, and waits until all is written.
func (b *blockWriter) Close() error {
	if !b.ended {
		b.ended = true
		b.send(true)
		close(b.queue)
		<-b.done
		b.pool.memory.leave()
	}
	return b.failed()
}

// send hands the block over to be compressed and begins the next.
func (b *blockWriter) send(last bool) {
	block, dict, pooled := b.block, b.dict, b.pooled
	out := make(chan packed, 1)
	// Memory is bounded by the blocks that are not written yet. Those of one
	// writer get their room in their order, so the first always gets on.
	b.pool.room <- struct{}{}
	b.queue <- out
	if !last {
		b.dict = min(len(block), b.window)
		b.block = append(b.buffer(), block[len(block)-b.dict:]...)
		b.pooled = true
	}
	go func() {
		b.pool.slots <- struct{}{}
		var p packed
		if pooled { // else it is small, and so is what comes of it
			p.buf = b.buffer()
		}
		p.data, p.err = b.pack(p.buf, block[:dict], block[dict:], last)
		<-b.pool.slots
		if pooled {
			b.pool.memory.put(block)
		}
		out <- p
	}()
}

// drain writes the blocks in their order. After a failure it goes on receiving,
// so that nobody waits for it.
func (b *blockWriter) drain(w io.Writer) {
	defer close(b.done)
	for out := range b.queue {
		p := <-out
		err := p.err
		if err == nil && b.failed() == nil {
			_, err = w.Write(p.data)
		}
		if err != nil {
			b.mu.Lock()
			if b.err == nil {
				b.err = err
			}
			b.mu.Unlock()
		}
		if p.buf != nil {
			b.pool.memory.put(p.buf)
		}
		<-b.pool.room
	}
}

func (b *blockWriter) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
