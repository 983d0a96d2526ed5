// Package chunked turns a directory into a list of its files and chunks of their
// content, and back.
//
// Content is cut where it says so itself, so that an insertion moves no cut but
// those next to it: FastCDC, with chunks of 1 to 32 KiB, 4 KiB on average. Chunks
// are that small for databases, which change a page of 4 KiB here and there. Each
// file is cut by itself: a change in one leaves the others' chunks what they are.
//
// # Packs
//
// Ten thousands of blobs are more than registries bear, so chunks travel in
// packs: the bytes of one after another, at most 16 MiB and a chunk, compressed
// together by zstd. Before that may stand a frame of zstd's that is skipped: what
// is wrong with a blob under some digest does not go away by sending it again, as
// places take it to be there, so that it is sent under another.
//
// # Lists
//
// A list is compressed by zstd too, and may begin with such a frame. Numbers are unsigned varints
// (encoding/binary) unless said otherwise.
//
//	file    = "build-mount-1\n" packs entries content
//	packs   = count pack…           in the order that the packs are named in
//	pack    = count chunk…          in the order that they are in the pack
//	chunk   = size digest           32 bytes: BLAKE3
//	entries = size bytes            as cache/layer.WriteEntries has them: without
//	                                digests, inode numbers and counts of links
//	content = [count part…]…        of each regular file that is not a hard link,
//	                                in the order of entries
//	part    = count start           so many chunks, counted over all packs; start is
//	                                a signed varint, from the end of the part before,
//	                                in this file or another
//	        | 0 size                a hole
//
// Entries are the root, mode and owner and all, and what is below it: directories,
// regular files, symbolic links; no sockets, pipes and devices. A directory comes
// before what is in it, names in the order of their bytes. A list that does not
// keep to this is refused, see [Decode].
package chunked
