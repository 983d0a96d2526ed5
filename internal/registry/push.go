package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/internal/oci"
)

func pushScope(e endpoint) []string { return []string{"repository:" + e.repository + ":pull,push"} }

// PushBlob makes sure that ref's repository has blob desc. What is there is not
// sent again; where mountFrom, a repository's path in the same registry, is not
// empty and has it, it is mounted from there. Else open's bytes are sent; open
// is called anew for each try, and its reader is closed.
func (c *Client) PushBlob(ctx context.Context, ref oci.Reference, desc oci.Descriptor, open func() (io.ReadCloser, error), mountFrom string) error {
	e, err := c.endpoint(ref)
	if err != nil {
		return err
	}
	err = c.retry(ctx, tries, func() error { return e.headBlob(ctx, desc.Digest, pushScope(e)) })
	if hasStatus(err, http.StatusNotFound) {
		err = c.retry(ctx, tries, func() error { return e.upload(ctx, desc, open, mountFrom) })
	}
	if err != nil {
		return explain(ref, e, "push", "blob "+desc.Digest.String(), err)
	}
	return nil
}

// upload begins an upload, which may mount the blob, and sends it whole.
func (e endpoint) upload(ctx context.Context, desc oci.Descriptor, open func() (io.ReadCloser, error), mountFrom string) error {
	mount := url.Values{"mount": {desc.Digest.String()}, "from": {mountFrom}}
	if mountFrom == "" || mountFrom == e.repository {
		mount = nil
	}
	to, mounted, err := e.begin(ctx, mount)
	if err != nil && mount != nil {
		// Not allowed to read there, perhaps; it is but a saving.
		to, mounted, err = e.begin(ctx, nil)
	}
	if err != nil || mounted {
		return err
	}
	return e.end(ctx, to, desc, open, desc.Size)
}

// begin begins an upload, and returns where it is to go. With mount, the query of
// the distribution specification's "Mounting a blob from another repository", it
// may be done already.
func (e endpoint) begin(ctx context.Context, mount url.Values) (to *url.URL, mounted bool, err error) {
	r := request{
		method: http.MethodPost, path: e.repository + "/blobs/uploads/",
		scopes: pushScope(e), ok: []int{http.StatusAccepted},
	}
	if mount != nil {
		r.path += "?" + mount.Encode()
		r.scopes = append(r.scopes, "repository:"+mount.Get("from")+":pull")
		r.ok = append(r.ok, http.StatusCreated)
	}
	resp, err := e.do(ctx, r)
	if err != nil {
		return nil, false, err
	}
	discard(resp)
	if resp.StatusCode == http.StatusCreated {
		return nil, true, nil
	}
	if to, err = e.location(resp); err != nil {
		err = fmt.Errorf("begin upload: %s gave no place for it: %w", e.name, err)
	}
	return to, false, err
}

// end ends the upload at to with the size bytes of open, the last of desc's.
func (e endpoint) end(ctx context.Context, to *url.URL, desc oci.Descriptor, open func() (io.ReadCloser, error), size int64) error {
	q := to.Query()
	q.Set("digest", desc.Digest.String())
	to.RawQuery = q.Encode()
	resp, err := e.do(ctx, request{
		method: http.MethodPut, url: to, scopes: pushScope(e),
		header: http.Header{"Content-Type": {"application/octet-stream"}},
		body:   open, size: size,
		ok: []int{http.StatusCreated, http.StatusNoContent, http.StatusOK},
	})
	if err == nil {
		discard(resp)
	}
	return err
}

// PushManifest puts a manifest or index under ref's digest if it has one, else
// under its tag. All that it names must be there already.
func (c *Client) PushManifest(ctx context.Context, ref oci.Reference, mediaType string, data []byte) (oci.Descriptor, error) {
	desc := oci.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if err := checkRef(ref); err != nil {
		return desc, err
	}
	e, err := c.endpoint(ref)
	if err != nil {
		return desc, err
	}
	err = c.retry(ctx, tries, func() error {
		resp, err := e.do(ctx, request{
			method: http.MethodPut, path: e.path("manifests", wanted(ref)), scopes: pushScope(e),
			header: http.Header{"Content-Type": {mediaType}},
			body:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
			size:   desc.Size,
			ok:     []int{http.StatusCreated, http.StatusOK, http.StatusAccepted},
		})
		if err == nil {
			discard(resp)
		}
		return err
	})
	if err != nil {
		return desc, explain(ref, e, "push", "", err)
	}
	return desc, nil
}

func hasStatus(err error, code int) bool {
	var status *transport.Error
	return errors.As(err, &status) && status.StatusCode == code
}
