// Package cache is everything on disk: snapshots, layers, step records, leases.
//
// # The state directory
//
// Any number of processes have it open at once; none of them is in charge. Below
// it lie
//
//	format            "build state 1": the version word of all that follows
//	driver            "overlay" or "plain": which driver snapshots/ belongs to
//	leases/L          the lease of a process, locked (flock) while it lives
//	leases/L.d/ID     a layer that this process is making, or has dropped
//	snapshots/        the driver's: see packages overlay and plain
//	layers/ID/        what is known of the committed layer ID: layer.json, entries,
//	                  and tar-E, the diff ID of its tar with times up to E; one that
//	                  was found to be damaged has "dropped" instead of layer.json
//	steps/HH/H        the record of the step with the key H; HH are its first digits
//	places/P          the key that was recorded last for a place, P being a hash of it,
//	                  and which files of the context had it missed the last few times
//	results/H         what a build without a name came to
//	stats/P           content digests of the files of one directory by their stamps
//	listings/H        the files that the digest H of a COPY or a mount was made of
//	pins/P            what a tag was when a registry was last asked
//	chains/H          which layer built here is the top of the chain with the chain ID H
//	mounts/M/N        cache mounts: id tells the name, N is a directory, N.lock its lock
//	http/, git/       downloads of ADD, for their sources
//	locks/NAME        what is being done by one process at a time; removed after use
//	tmp/L/            temporary files of the process with the lease L
//	gc.lock           orders marks of use and collection: see gc.go
//	pruned, last.json when collection last began by itself; what the last build did
//	oci/              bundles of steps that an installed runtime runs
//	images/           the image store, an OCI image layout: see package image
//	containers/       containers of build run: see internal/container
//
// L is 12 random hexadecimal digits. ID is "L-N" for the Nth layer that a process
// builds, or "sha256-" and the diff ID of one that was unpacked from a tar; another
// "-" and digits name the layers that it could only be unpacked upon. E is an epoch
// in seconds since 1970; without it times are as the files have them.
//
// # Records
//
// layer.json, tar, step, place, result, pin and chain files are JSON, a newline,
// "blake3:" and the hash of the JSON, a newline. They are written under a
// temporary name in their directory and renamed; they are not synced, because
// their reader checks them: one that does not fit its checksum, or not its name,
// is as good as absent, and is removed. So after a power cut a step may run
// again, and nothing is ever taken for what it is not. Stats files and
// listings are binary, under the same kind of checksum. The form of entries is package layer's.
//
// # What makes a write committed
//
// A layer is committed by the rename of its layer.json, the last thing to be
// written: its files are in place by then, and its entries. None of them are
// synced: layer.json names the run of the kernel that wrote them, and in another
// one the files are compared with the entries (their types, sizes and times) before
// the layer is used for the first time; one that a power cut has harmed is not here
// any more. A step is recorded by
// the rename of its record, after its layers are committed. What a process has
// begun and not committed it has listed under its lease first; the next process
// to sweep, or the process itself when it ends in order, removes it.
//
// # Damage
//
// A layer is compared with its entries in this way whenever a step reads it,
// beside the step, whose result counts only if it was whole. What reads all of a
// layer compares contents: with the diff ID, or where that is not known yet with
// the digests in the entries. A layer that fails is dropped: its layer.json gets
// the name "dropped", so that it is not here for anybody, and its files go once no
// process runs that began before and may have them mounted.
//
// The word in format is a record as well. One that is damaged is written anew,
// and so is driver, as snapshots/ tells.
//
// # Who may delete
//
// A process deletes what its own lease lists, and what is listed by leases whose
// process is gone: their lock can be had. Temporary names of records hold the
// lease too, ".tmp-L-…", and go with it. A committed layer is deleted by
// RemoveLayer: metadata first, so that every process sees it gone before its
// files are. A record whose layers are gone is a miss. What any process may delete
// at any time is a repository below git/ whose lock it has, other downloads, and
// files below stats, places and results: they save work, or explain.
//
// # Versions
//
// The word in format changes when an older program could misread the directory;
// such a program refuses it. Entries, stats and listings have version words of their
// own: another version is as good as none.
package cache
