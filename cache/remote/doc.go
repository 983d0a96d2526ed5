// Package remote exports step records and layers, to be found by builds on other
// machines, and imports them.
//
// # Form
//
// A cache is an OCI image manifest, its blobs, and no more: any registry keeps
// it, and so does an OCI layout, an S3 bucket or the cache of GitHub Actions.
// The manifest has
//
//	mediaType     application/vnd.oci.image.manifest.v1+json
//	artifactType  application/vnd.build-cache.v1
//	config        the index: application/vnd.build-cache.index.v1+json
//	layers        the blobs that the index names, each once:
//	              layers, with OCI's media types for them; lists of entries:
//	              application/vnd.build-cache.entries.v1+zstd; lists and packs of
//	              cache mounts: application/vnd.build-cache.mount.v1+zstd and
//	              application/vnd.build-cache.chunks.v1+zstd
//
// The index is JSON:
//
//	{ "version": 1,
//	  "layers": [
//	    { "diffID":  "sha256:…",        of the uncompressed tar
//	      "content": "blake3:…",        of what it changes, without times
//	      "blob":    "sha256:…",        among the manifest's layers; absent from a
//	                                    layer of a base image, which is to be had
//	                                    where the build gets that image
//	      "tarSize": 10240,
//	      "created": "2006-01-02T15:04:05Z",
//	      "epoch":   0,                 no file in the tar is later, in seconds since
//	                                    1970; absent: times are as the step left them
//	      "entries": "sha256:…" } ],    among the manifest's layers; may be absent
//	  "records": [
//	    { "keys":    ["blake3:…", …],   the step's own digest, and its key by the
//	                                    content of its inputs
//	      "layers":  [0, 1],            of the result, lowest first
//	      "created": "2006-01-02T15:04:05Z",
//	      "expires": "2006-01-02T15:04:05Z",   the record is of no use after that;
//	                                    absent: it always is
//	      "parts":   [{"name": "operation", "value": "blake3:…"}, …] } ],
//	  "mounts": [
//	    { "id":      "/root/.cache",    as the store that put it out names it
//	      "created": "2006-01-02T15:04:05Z",
//	      "files":   1000,              directories and all
//	      "size":    500000000,         bytes of content, without holes
//	      "list":    "sha256:…",        both among the manifest's layers
//	      "packs":   ["sha256:…", …] } ] }
//
// A list of entries is what cache/layer.WriteEntries writes, with inode numbers
// and counts of links 0 and times as the tar has them, compressed with zstd. From
// it the keys of steps that copy out of an imported stage are computed without
// the stage's bytes.
//
// The form of lists and packs is package chunked's. Packs may hold chunks that are
// not needed any more: what an export leaves of the one before.
//
// Parts hold names and digests or short values, never a secret. With parts=false
// there are none.
//
// In an image (type=inline) the index is the manifest's annotation
// [InlineAnnotation]; the blobs are the image's layers, and there are no lists of
// entries. The image's configuration, and so its ID, is the same with and
// without.
//
// A version other than 1 is refused, and so are the caches of BuildKit, by name.
//
// # Places
//
// A registry has the manifest under a tag. An OCI layout has it in index.json,
// under the name "latest" unless another is asked for. In S3 the manifest is the
// object PREFIX+"manifests/"+NAME, and a blob PREFIX+"blobs/"+its digest. GitHub's
// entries never change: there the manifest is the entry
// "build-cache-1-index-SCOPE#"+nanoseconds, of which the newest counts, and a blob
// "build-cache-1-blob-"+its digest. In all of them the manifest is written last,
// so that a cache which was begun and not finished is not there.
//
// # Checks
//
// All that comes from elsewhere is held to bounds, and blobs to their digests and
// sizes: see [Open]. Nothing is unpacked here but cache mounts, see chunked.Decode
// and [Cache.RestoreMount]. Who may write to a cache can put any result under any
// key, and anything into a mount; what they cannot do is to reach out of a layer or
// a mount, to have another address asked than the one that the user named, or to
// make a build fail.
package remote
