// Package layer turns the changes of a layer into a tar and back, finds them in
// a layer's directory, and keeps lists of them on disk.
//
// # Tars
//
// Write and Apply follow the OCI image specification, layer.md: a file ".wh.x"
// says that x is gone, ".wh..wh..opq" that a directory hides what lower layers
// have in it. Write is deterministic, and writes what BuildKit writes for the
// same changes, so that their diff IDs can be compared: entries in the order of
// the list, which has the parents of what it changes; USTAR headers with PAX
// records only where something does not fit; times in whole seconds; no names
// of users; whiteouts with mode 0 and time 0.
//
// # Entries
//
// WriteEntries keeps a list of changes in this form. Numbers are unsigned
// varints (encoding/binary) unless said otherwise; a text is its length and its
// bytes, any bytes.
//
//	file    = "build-entries-1\n" record… end sum
//	record  = kind path body
//	kind    = one byte of bits:
//	          1 removed: no body
//	          2 opaque
//	          4 a digest follows
//	          8 a hard link follows
//	          16 xattrs follow
//	          32 a link target follows
//	          64 a device number follows
//	path    = shared text: so many bytes of the path before, then the text
//	body    = mode uid gid size seconds nanoseconds ino nlink
//	          [digest] [hardlink] [xattrs] [target] [major minor]
//	seconds = of the modification time since 1970, a signed varint
//	digest  = 0 and the 32 bytes of a blake3 digest, or the text "algorithm:hex"
//	hardlink, target = text
//	xattrs  = count, then name and value of each, sorted by name: texts
//	end     = 128 count: how many records there are
//	sum     = the first 16 bytes of the blake3 hash of everything before
//
// The version word changes when the form does; a reader refuses any other.
package layer
