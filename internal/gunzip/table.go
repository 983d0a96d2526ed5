package gunzip

import "math/bits"

// Entries of a table say what the next bits of the input mean. The lowest byte
// is how many bits that takes, all in all.
//
//	literal     bit 31; bits 16–23 are the byte
//	length      bits 16–24 are the shortest one; the code takes bits 8–13, what
//	            is left of the lowest byte is added to that
//	distance    bits 16–30, and the same
//	subtable    bits 14 and 15; bits 16–30 are where it begins, 8–13 how many bits
//	            index it
//	end         bits 13 and 15: of the block
//	invalid     bit 15 alone
const (
	isLiteral  = 1 << 31
	isSpecial  = 1 << 15
	isSubtable = 1 << 14
	isEnd      = 1 << 13
)

const (
	maxCode = 15 // bits

	lengthBits   = 11 // of the index of the first tables
	distanceBits = 8
	// The sizes that tables with subtables have at most, of 288 codes with 11 bits
	// and 32 with 8, as zlib's examples/enough.c counts them: 2342 and 402.
	lengthSize   = 2342
	distanceSize = 402

	maxLengths   = 286 // symbols that there are
	maxDistances = 30
)

// tables are those of a block.
type tables struct {
	length   [lengthSize]uint32
	distance [distanceSize]uint32
	fixed    bool // they are those of blocks with fixed codes
}

var (
	lengthBase    = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra   = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distanceBase  = [...]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distanceExtra = [...]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
)

// lengthEntry is what symbol means whose code has n bits.
func lengthEntry(symbol int, n uint) uint32 {
	switch {
	case symbol < 256:
		return isLiteral | uint32(symbol)<<16 | uint32(n)
	case symbol == 256:
		return isSpecial | isEnd | uint32(n)
	case symbol < maxLengths:
		extra := uint32(lengthExtra[symbol-257])
		return uint32(lengthBase[symbol-257])<<16 | uint32(n)<<8 | (uint32(n) + extra)
	}
	return isSpecial
}

func distanceEntry(symbol int, n uint) uint32 {
	if symbol >= maxDistances {
		return isSpecial
	}
	extra := uint32(distanceExtra[symbol])
	return uint32(distanceBase[symbol])<<16 | uint32(n)<<8 | (uint32(n) + extra)
}

// plainEntry is for the codes of code lengths.
func plainEntry(symbol int, n uint) uint32 { return uint32(symbol)<<16 | uint32(n) }

// build makes the table of a Huffman code (RFC 1951, section 3.2.2) whose symbols
// have codes of lens bits; its first part is indexed by first bits. It reports
// whether it is a code that may be: complete, or of a single bit, or empty.
func build(table []uint32, first uint, lens []uint8, entry func(symbol int, n uint) uint32) bool {
	var count, next [maxCode + 1]uint32
	longest := 0
	for _, n := range lens {
		count[n]++
		longest = max(longest, int(n))
	}
	count[0] = 0
	code := uint32(0)
	for n := 1; n <= longest; n++ {
		code <<= 1
		next[n] = code
		code += count[n]
	}
	// zlib takes a code of one bit that is not complete, and so must others.
	complete := longest > 0 && code == 1<<longest
	if !complete && longest > 0 && (code != 1 || longest != 1) {
		return false
	}
	if !complete {
		for i := range table[:1<<first] {
			table[i] = isSpecial
		}
	}
	var codes [288]uint16 // the first bit lowest, as they are read
	var deep [1 << lengthBits]uint8
	for symbol, length := range lens {
		if length == 0 {
			continue
		}
		codes[symbol] = bits.Reverse16(uint16(next[length])) >> (16 - length)
		next[length]++
		if n := uint(length); n > first {
			head := codes[symbol] & (1<<first - 1)
			deep[head] = max(deep[head], uint8(n-first))
		}
	}
	if uint(longest) > first {
		end := uint32(1) << first // of what is taken of table
		for head, size := range deep[:1<<first] {
			if size > 0 {
				table[head] = isSpecial | isSubtable | end<<16 | uint32(size)<<8 | uint32(first)
				end += 1 << size
			}
		}
	}
	for symbol, length := range lens {
		n, code := uint(length), uint32(codes[symbol])
		if n == 0 {
			continue
		}
		part := table[:1<<first]
		if n > first {
			head := code & (1<<first - 1)
			at := table[head] >> 16
			part = table[at : at+1<<deep[head]]
			code, n = code>>first, n-first
		}
		e := entry(symbol, n)
		for i := code; i < uint32(len(part)); i += 1 << n {
			part[i] = e
		}
	}
	return true
}
