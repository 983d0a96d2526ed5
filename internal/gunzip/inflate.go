package gunzip

import "encoding/binary"

// need makes sure that there are n bits, at most 32, in z.bits.
func (z *Reader) need(n uint) error {
	for z.nbits < n {
		if z.fill(1); z.at == z.end {
			return z.short()
		}
		z.bits |= uint64(z.in[z.at]) << z.nbits
		z.at++
		z.nbits += 8
	}
	return nil
}

// take takes n bits, which are there.
func (z *Reader) take(n uint) uint32 {
	v := uint32(z.bits & (1<<n - 1))
	z.bits >>= n
	z.nbits -= n
	return v
}

// block reads the header of a block (RFC 1951, section 3.2.3), or the trailer
// behind the last one.
func (z *Reader) block() error {
	if z.last {
		z.last = false
		z.next = (*Reader).trailer
		return nil
	}
	if err := z.need(3); err != nil {
		return err
	}
	z.last = z.take(1) == 1
	switch z.take(2) {
	case 0:
		return z.storedHeader()
	case 1:
		z.fixedCodes()
	case 2:
		if err := z.dynamicCodes(); err != nil {
			return err
		}
	default:
		return z.corrupt()
	}
	z.next = (*Reader).compressed
	return nil
}

func (z *Reader) storedHeader() error {
	z.unread()
	z.fill(4)
	if z.end-z.at < 4 {
		return z.short()
	}
	n, not := binary.LittleEndian.Uint16(z.in[z.at:]), binary.LittleEndian.Uint16(z.in[z.at+2:])
	z.at += 4
	if n != ^not {
		return z.corrupt()
	}
	z.left = int(n)
	z.next = (*Reader).stored
	return nil
}

func (z *Reader) stored() error {
	z.fill(1)
	if z.at == z.end && z.left > 0 {
		return z.short()
	}
	n := min(z.left, z.end-z.at, window+outputSize-z.to)
	copy(z.out[z.to:], z.in[z.at:z.at+n])
	z.to, z.at, z.left = z.to+n, z.at+n, z.left-n
	if z.left == 0 {
		z.next = (*Reader).block
	}
	return nil
}

func (z *Reader) fixedCodes() {
	if z.codes.fixed {
		return
	}
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144 || i >= 280:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		default:
			lens[i] = 7
		}
	}
	build(z.codes.length[:], lengthBits, lens[:], lengthEntry)
	for i := range lens[:32] {
		lens[i] = 5
	}
	build(z.codes.distance[:], distanceBits, lens[:32], distanceEntry)
	z.codes.fixed = true
}

// order is that in which the lengths of the codes of code lengths come.
var order = [...]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicCodes reads the codes of a block (RFC 1951, section 3.2.7).
func (z *Reader) dynamicCodes() error {
	if err := z.need(14); err != nil {
		return err
	}
	lengths, distances, n := int(z.take(5))+257, int(z.take(5))+1, int(z.take(4))+4
	if lengths > maxLengths || distances > maxDistances {
		return z.corrupt()
	}
	var lens [maxLengths + maxDistances]uint8
	for _, symbol := range order[:n] {
		if err := z.need(3); err != nil {
			return err
		}
		lens[symbol] = uint8(z.take(3))
	}
	const plainBits = 7
	var plain [1 << plainBits]uint32
	if !build(plain[:], plainBits, lens[:len(order)], plainEntry) {
		return z.corrupt()
	}
	clear(lens[:])
	z.codes.fixed = false
	for i := 0; i < lengths+distances; {
		symbol, err := z.plain(&plain)
		if err != nil {
			return err
		}
		if symbol < 16 {
			lens[i] = uint8(symbol)
			i++
			continue
		}
		value, times := uint8(0), 0
		extra := [...]uint{2, 3, 7}[symbol-16]
		if err := z.need(extra); err != nil {
			return err
		}
		switch times = int(z.take(extra)); symbol {
		case 16:
			if i == 0 {
				return z.corrupt()
			}
			value = lens[i-1]
			times += 3
		case 17:
			times += 3
		case 18:
			times += 11
		}
		if i+times > lengths+distances {
			return z.corrupt()
		}
		for range times {
			lens[i] = value
			i++
		}
	}
	if !build(z.codes.length[:], lengthBits, lens[:lengths], lengthEntry) ||
		!build(z.codes.distance[:], distanceBits, lens[lengths:lengths+distances], distanceEntry) {
		return z.corrupt()
	}
	return nil
}

// plain reads a symbol of the codes of code lengths.
func (z *Reader) plain(table *[128]uint32) (int, error) {
	for {
		e := table[z.bits&127]
		n := uint(e & 0xff)
		if e&isSpecial == 0 && n <= z.nbits {
			z.take(n)
			return int(e >> 16), nil
		}
		if z.nbits >= 7 {
			return 0, z.corrupt()
		}
		if err := z.need(z.nbits + 1); err != nil {
			return 0, err
		}
	}
}

// compressed decodes symbols of a block until it ends or there is no more room.
func (z *Reader) compressed() error {
	for z.to < window+outputSize {
		z.fill(2 * reserve)
		if z.end-z.at >= reserve {
			if done, err := z.fast(); done || err != nil {
				return err
			}
			continue
		}
		if done, err := z.slow(); done || err != nil {
			return err
		}
	}
	return nil
}

// fast decodes symbols as long as there is much input and room. done is the
// block's end.
func (z *Reader) fast() (done bool, err error) {
	in, at, last := z.in[:z.end], z.at, z.end-reserve
	out, to, low := z.out, z.to, z.low
	buf, n := z.bits, z.nbits
	lengths, distances := &z.codes.length, &z.codes.distance
loop:
	for at <= last && to < window+outputSize {
		// At least 56 bits: a match takes 48 at most. The bits above n are those
		// that come next, or none; they are read again as they are.
		buf |= binary.LittleEndian.Uint64(in[at:]) << (n & 63)
		at += int((63 - n) >> 3)
		n |= 56
		e := lengths[buf&(1<<lengthBits-1)]
		if int32(e) < 0 {
			buf >>= e & 63
			n -= uint(e & 0xff)
			out[to] = byte(e >> 16)
			to++
			e = lengths[buf&(1<<lengthBits-1)]
			if int32(e) < 0 {
				buf >>= e & 63
				n -= uint(e & 0xff)
				out[to] = byte(e >> 16)
				to++
				e = lengths[buf&(1<<lengthBits-1)]
				if int32(e) < 0 {
					buf >>= e & 63
					n -= uint(e & 0xff)
					out[to] = byte(e >> 16)
					to++
					continue
				}
			}
		}
		if e&isSpecial != 0 {
			if e&isSubtable != 0 {
				buf >>= lengthBits
				n -= lengthBits
				e = lengths[uint64(e>>16)+buf&(1<<(e>>8&15)-1)]
			}
			switch {
			case int32(e) < 0:
				buf >>= e & 63
				n -= uint(e & 0xff)
				out[to] = byte(e >> 16)
				to++
				continue
			case e&isSpecial == 0:
			case e&isEnd != 0:
				buf >>= e & 63
				n -= uint(e & 0xff)
				done = true
				break loop
			default:
				err = z.corrupt()
				break loop
			}
		}
		length := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&63))
		buf >>= e & 63
		n -= uint(e & 0xff)

		buf |= binary.LittleEndian.Uint64(in[at:]) << (n & 63)
		at += int((63 - n) >> 3)
		n |= 56
		e = distances[buf&(1<<distanceBits-1)]
		if e&isSpecial != 0 {
			if e&isSubtable != 0 {
				buf >>= distanceBits
				n -= distanceBits
				e = distances[uint64(e>>16&0x7fff)+buf&(1<<(e>>8&15)-1)]
			}
			if e&isSpecial != 0 {
				err = z.corrupt()
				break loop
			}
		}
		distance := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&63))
		buf >>= e & 63
		n -= uint(e & 0xff)
		if distance > to-low {
			err = z.corrupt()
			break loop
		}
		repeat(out, to, distance, length)
		to += length
	}
	z.at, z.to = at, to
	z.bits, z.nbits = buf&(1<<n-1), n
	if done {
		z.next = (*Reader).block
	}
	return done, err
}

// repeat copies length bytes from distance before out[to] to there; there is
// slack behind them that it may write to.
func repeat(out []byte, to, distance, length int) {
	from, end := to-distance, to+length
	switch {
	case distance >= 8 && length <= 32:
		for ; to < end; from, to = from+8, to+8 {
			binary.LittleEndian.PutUint64(out[to:], binary.LittleEndian.Uint64(out[from:]))
		}
	case distance >= length:
		copy(out[to:end], out[from:])
	default:
		// The piece that repeats doubles with each copy.
		for to < end {
			to += copy(out[to:end], out[from:to])
		}
	}
}

// slow decodes one symbol near the end of the input.
func (z *Reader) slow() (done bool, err error) {
	e, err := z.symbol(z.codes.length[:], lengthBits)
	if err != nil {
		return false, err
	}
	switch {
	case int32(e) < 0:
		z.out[z.to] = byte(e >> 16)
		z.to++
		return false, nil
	case e&isEnd != 0 && e&isSpecial != 0:
		z.next = (*Reader).block
		return true, nil
	}
	length, err := z.value(e)
	if err != nil {
		return false, err
	}
	if e, err = z.symbol(z.codes.distance[:], distanceBits); err != nil {
		return false, err
	}
	distance, err := z.value(e)
	if err != nil {
		return false, err
	}
	if distance > z.to-z.low {
		return false, z.corrupt()
	}
	repeat(z.out, z.to, distance, length)
	z.to += length
	return false, nil
}

// symbol reads a symbol's code, and takes it.
func (z *Reader) symbol(table []uint32, first uint) (uint32, error) {
	for {
		e := table[z.bits&(1<<first-1)]
		used := uint(0)
		if e&(isSpecial|isSubtable) == isSpecial|isSubtable && int32(e) >= 0 {
			used = first
			e = table[uint64(e>>16)+z.bits>>first&(1<<(e>>8&15)-1)]
		}
		invalid := int32(e) >= 0 && e&(isSpecial|isEnd) == isSpecial
		code := uint(e & 0xff)
		if int32(e) >= 0 && e&isSpecial == 0 {
			code = uint(e >> 8 & 63)
		}
		switch {
		case !invalid && used+code <= z.nbits:
			z.take(used + code)
			return e, nil
		case invalid && z.nbits >= maxCode:
			return 0, z.corrupt()
		}
		if err := z.need(z.nbits + 1); err != nil {
			return 0, err
		}
	}
}

// value reads the rest of a length or distance, whose code was taken.
func (z *Reader) value(e uint32) (int, error) {
	extra := uint(e&0xff) - uint(e>>8&63)
	if err := z.need(extra); err != nil {
		return 0, err
	}
	return int(e>>16) + int(z.take(extra)), nil
}
