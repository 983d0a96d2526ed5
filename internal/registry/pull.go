package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/internal/oci"
)

// maxManifest bounds manifests and indexes, in bytes. Registries accept 4 MiB.
const maxManifest = 8 << 20

// accept lists the manifests that are asked for; a server that has another
// form, such as schema 1, may send that.
var accept = strings.Join([]string{
	string(types.OCIImageIndex), string(types.DockerManifestList),
	string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
}, ", ")

// wanted is what ref asks for in a URL: its digest, else its tag.
func wanted(ref oci.Reference) string {
	if ref.Digest != "" {
		return ref.Digest.String()
	}
	return ref.Tag
}

func pullScope(e endpoint) []string { return []string{"repository:" + e.repository + ":pull"} }

// path is below /v2/. Mirrors that stand for several registries are told which
// one is meant, as containerd tells them.
func (e endpoint) path(kind, what string) string {
	p := e.repository + "/" + kind + "/" + what
	if e.mirrorOf != "" && e.mirrorOf != DockerHub {
		p += "?ns=" + url.QueryEscape(e.mirrorOf)
	}
	return p
}

// Resolve describes the manifest or index that ref names: its media type,
// digest and size. The bytes have not been seen.
func (c *Client) Resolve(ctx context.Context, ref oci.Reference) (desc oci.Descriptor, err error) {
	if err := checkRef(ref); err != nil {
		return desc, err
	}
	err = c.pull(ctx, ref, "", func(e endpoint) error {
		desc, err = e.head(ctx, ref)
		return err
	})
	return desc, err
}

// head is Resolve at one endpoint. Where a server does not know HEAD, or says
// too little, it is asked for the manifest.
func (e endpoint) head(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	resp, err := e.do(ctx, request{
		method: http.MethodHead, path: e.path("manifests", wanted(ref)), scopes: pullScope(e),
		header: http.Header{"Accept": {accept}}, ok: []int{http.StatusOK},
	})
	if err != nil {
		var status *transport.Error
		if errors.As(err, &status) {
			switch status.StatusCode {
			case http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusBadRequest:
				_, desc, err := e.manifest(ctx, ref)
				return desc, err
			}
		}
		return oci.Descriptor{}, err
	}
	resp.Body.Close()
	desc := oci.Descriptor{
		MediaType: mediaType(resp.Header), Size: resp.ContentLength,
		Digest: oci.Digest(resp.Header.Get("Docker-Content-Digest")),
	}
	if ref.Digest != "" {
		desc.Digest = ref.Digest
	}
	if isSchema1(desc.MediaType) {
		return desc, ErrSchema1
	}
	if desc.Digest.Validate() != nil || desc.Size <= 0 || desc.MediaType == "" {
		_, desc, err = e.manifest(ctx, ref)
	}
	return desc, err
}

// Manifest reads the manifest or index that ref names, verified by ref's digest
// if it has one. One above 8 MiB is an error.
func (c *Client) Manifest(ctx context.Context, ref oci.Reference) (data []byte, desc oci.Descriptor, err error) {
	if err := checkRef(ref); err != nil {
		return nil, desc, err
	}
	err = c.pull(ctx, ref, "", func(e endpoint) error {
		data, desc, err = e.manifest(ctx, ref)
		return err
	})
	return data, desc, err
}

func (e endpoint) manifest(ctx context.Context, ref oci.Reference) ([]byte, oci.Descriptor, error) {
	var desc oci.Descriptor
	resp, err := e.do(ctx, request{
		method: http.MethodGet, path: e.path("manifests", wanted(ref)), scopes: pullScope(e),
		header: http.Header{"Accept": {accept}}, ok: []int{http.StatusOK},
	})
	if err != nil {
		return nil, desc, err
	}
	defer resp.Body.Close()
	if isSchema1(mediaType(resp.Header)) {
		return nil, desc, ErrSchema1 // its digest is not that of its bytes
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return nil, desc, err
	}
	if len(data) > maxManifest {
		return nil, desc, fmt.Errorf("manifest is larger than %d bytes", maxManifest)
	}
	want := ref.Digest
	if want == "" {
		// What the server says of itself finds transfers that were cut or changed.
		if d := oci.Digest(resp.Header.Get("Docker-Content-Digest")); d.Validate() == nil {
			want = d
		} else {
			want = digest.FromBytes(data)
		}
	}
	if got := want.Algorithm().FromBytes(data); got != want {
		return nil, desc, &DigestError{Host: e.host.name, Want: want, Got: got}
	}
	return data, oci.Descriptor{MediaType: mediaType(resp.Header), Digest: want, Size: int64(len(data))}, nil
}

// HasBlob reports whether the registry itself, not a mirror, has blob d in the
// repository of ref.
func (c *Client) HasBlob(ctx context.Context, ref oci.Reference, d oci.Digest) (bool, error) {
	e, err := c.endpoint(ref)
	if err != nil {
		return false, err
	}
	err = c.retry(ctx, tries, func() error { return e.headBlob(ctx, d, pullScope(e)) })
	if err != nil {
		err = explain(ref, e, "look in", "blob "+d.String(), err)
		if errors.Is(err, ErrNotFound) {
			return false, nil
		}
	}
	return err == nil, err
}

func (e endpoint) headBlob(ctx context.Context, d oci.Digest, scopes []string) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", string(d), err)
	}
	resp, err := e.do(ctx, request{
		method: http.MethodHead, path: e.path("blobs", d.String()), scopes: scopes, ok: []int{http.StatusOK},
	})
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// Blob opens blob desc of ref's repository. Reading goes on by itself where a
// connection broke, and fails in place of io.EOF if the bytes are not those of
// desc: a *DigestError, so nothing read may be relied on before. A size of 0
// in desc stands for an unknown one. The caller closes it; ctx covers reading too.
func (c *Client) Blob(ctx context.Context, ref oci.Reference, desc oci.Descriptor) (io.ReadCloser, error) {
	b, err := c.RawBlob(ctx, ref, desc)
	if err != nil {
		return nil, err
	}
	b.hash = desc.Digest.Algorithm().Hash()
	return b, nil
}

// RawBlob is Blob for a caller who computes the digest anyway: all but the size
// is left unverified.
func (c *Client) RawBlob(ctx context.Context, ref oci.Reference, desc oci.Descriptor) (*BlobReader, error) {
	if err := checkRef(ref); err != nil {
		return nil, err
	}
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("blob %q: %w", string(desc.Digest), err)
	}
	b := &BlobReader{c: c, ctx: ctx, ref: ref, desc: desc}
	if err := b.open(); err != nil {
		return nil, err
	}
	return b, nil
}

// BlobReader reads one blob over as many connections as it takes.
type BlobReader struct {
	c    *Client
	ctx  context.Context // of the whole download, as an io.Reader has no place for it
	ref  oci.Reference
	desc oci.Descriptor
	hash hash.Hash // nil: not verified

	body   io.ReadCloser
	host   string // that body comes from
	offset int64
	idle   int   // breaks since the last byte came
	whole  bool  // ranges are refused: read again what was read
	err    error // what all further Reads give
}

// open gets the rest of the blob, from offset.
func (b *BlobReader) open() error {
	err := b.c.pull(b.ctx, b.ref, "blob "+b.desc.Digest.String(), b.openAt)
	if err == nil || !errors.Is(err, ErrNotFound) || len(b.desc.URLs) == 0 {
		return err
	}
	// A foreign layer, which registries need not have.
	for _, s := range b.desc.URLs {
		u, e := url.Parse(s)
		if e != nil || u.Scheme != "https" && u.Scheme != "http" {
			continue
		}
		h, e := b.c.host(u.Host)
		if e != nil {
			continue
		}
		e = b.c.retry(b.ctx, tries, func() error {
			return b.start(endpoint{host: h}, request{url: u, foreign: true})
		})
		if e == nil {
			return nil
		}
		err = fmt.Errorf("%w; %s: %w", err, u.Redacted(), e)
	}
	return err
}

func (b *BlobReader) openAt(e endpoint) error {
	return b.start(e, request{path: e.path("blobs", b.desc.Digest.String()), scopes: pullScope(e)})
}

func (b *BlobReader) start(e endpoint, r request) error {
	r.method, r.ok = http.MethodGet, []int{http.StatusOK}
	if b.offset > 0 && !b.whole {
		// Some servers know only ranges with an end.
		end := ""
		if b.desc.Size > 0 {
			end = strconv.FormatInt(b.desc.Size-1, 10)
		}
		r.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-%s", b.offset, end)}}
		r.ok = append(r.ok, http.StatusPartialContent)
	}
	resp, err := e.do(b.ctx, r)
	if hasStatus(err, http.StatusRequestedRangeNotSatisfiable) && !b.whole {
		b.whole = true
		r.header = nil
		resp, err = e.do(b.ctx, r)
	}
	if err != nil {
		return err
	}
	skip := b.offset
	if resp.StatusCode == http.StatusPartialContent {
		var from int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &from); err != nil || from > b.offset {
			resp.Body.Close()
			return fmt.Errorf("asked for bytes from %d on, got %q", b.offset, resp.Header.Get("Content-Range"))
		}
		skip -= from
	}
	if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
		resp.Body.Close()
		return fmt.Errorf("read again what was read: %w", err)
	}
	b.body, b.host = resp.Body, e.host.name
	return nil
}

// Read implements io.Reader; see Client.Blob.
func (b *BlobReader) Read(p []byte) (int, error) {
	for b.err == nil {
		n, err := b.body.Read(p)
		if n > 0 {
			b.idle = 0
			b.offset += int64(n)
			if b.hash != nil {
				b.hash.Write(p[:n])
			}
			if b.desc.Size > 0 && b.offset > b.desc.Size {
				b.err = b.fail(fmt.Errorf("%s sent more than its %d bytes", b.host, b.desc.Size))
				return 0, b.err
			}
		}
		switch {
		case err == nil:
		case err == io.EOF && (b.desc.Size <= 0 || b.offset == b.desc.Size):
			b.err = b.verify()
		default:
			b.err = b.resume(err)
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, b.err
}

// verify is io.EOF if the bytes read are those asked for.
func (b *BlobReader) verify() error {
	if b.hash == nil {
		return io.EOF
	}
	got := digest.NewDigest(b.desc.Digest.Algorithm(), b.hash)
	if got == b.desc.Digest {
		return io.EOF
	}
	return b.Mismatch(got)
}

// Mismatch is the error of a blob that turned out to be got.
func (b *BlobReader) Mismatch(got oci.Digest) error {
	return b.fail(&DigestError{Host: b.host, Want: b.desc.Digest, Got: got})
}

// resume goes on after the connection broke with err. It gives up once
// several connections in a row brought nothing.
func (b *BlobReader) resume(err error) error {
	b.body.Close()
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	b.idle++
	if b.idle >= tries {
		if err == io.EOF {
			err = fmt.Errorf("%s has only %d of its %d bytes", b.host, b.offset, b.desc.Size)
		}
		return b.fail(err)
	}
	if err := b.c.sleep(b.ctx, b.idle-1, 0); err != nil {
		return err
	}
	return b.open()
}

func (b *BlobReader) fail(err error) error {
	return fmt.Errorf("pull %s: blob %s: %w", b.ref.Familiar(), b.desc.Digest, err)
}

// Close ends the download.
func (b *BlobReader) Close() error {
	if b.err == nil {
		b.err = errors.New("blob is closed")
	}
	return b.body.Close()
}

func checkRef(ref oci.Reference) error {
	if ref.Digest != "" {
		if err := ref.Digest.Validate(); err != nil {
			return fmt.Errorf("image %s: %w", ref.Familiar(), err)
		}
	} else if ref.Tag == "" {
		return fmt.Errorf("image %s: neither tag nor digest", ref.Familiar())
	}
	return nil
}

func isSchema1(mediaType string) bool {
	return mediaType == string(types.DockerManifestSchema1) || mediaType == string(types.DockerManifestSchema1Signed)
}

func mediaType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return h.Get("Content-Type")
	}
	return t
}
