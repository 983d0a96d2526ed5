package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"time"

	"github.com/861fb494/build/cache/remote/gha"
	"github.com/861fb494/build/internal/oci"
)

// inActions is a cache in that of GitHub Actions.
type inActions struct {
	client *gha.Client
	scope  string
}

// newActions is the service of the job that this runs in.
func (s Spec) newActions(env Env) (*inActions, error) {
	at := func(attr, name string) string {
		if v := s.Attrs[attr]; v != "" {
			return v
		}
		return env.Getenv(name)
	}
	var timeout time.Duration
	if v := s.Attrs["timeout"]; v != "" {
		var err error
		if timeout, err = time.ParseDuration(v); err != nil || timeout < 0 {
			return nil, fmt.Errorf("type gha: timeout %q: want a duration, such as 10m", v)
		}
	}
	if v := s.Attrs["version"]; v != "" && v != "2" {
		return nil, fmt.Errorf("type gha: version %q: the service's version 2 is the only one left", v)
	}
	scope := s.Attrs["scope"]
	if scope == "" {
		scope = "build"
	}
	// Keys have 512 characters at most, and this is a part of one.
	if len(url.QueryEscape(scope)) > 256 {
		return nil, fmt.Errorf("type gha: a scope of %d bytes is too long", len(scope))
	}
	return &inActions{client: gha.New(at("url_v2", "ACTIONS_RESULTS_URL"), at("token", "ACTIONS_RUNTIME_TOKEN"), timeout), scope: scope}, nil
}

func (a *inActions) String() string { return "GitHub Actions, scope " + a.scope }

// Origin has no token: it is the environment's of the job that reads it.
func (a *inActions) Origin(oci.Digest) string { return "cache+gha://actions" }

// indexPrefix ends with a character that an escaped scope has not, or the scope
// "a" would find what "ab" has.
func (a *inActions) indexPrefix() string {
	return "build-cache-1-index-" + url.QueryEscape(a.scope) + "#"
}

func blobEntry(d oci.Digest) string { return "build-cache-1-blob-" + d.String() }

func (a *inActions) Manifest(ctx context.Context, d oci.Digest) ([]byte, error) {
	if d != "" {
		return nil, fs.ErrNotExist // it has none that lists others
	}
	e, err := a.client.Find(ctx, a.indexPrefix(), true)
	if err != nil {
		return nil, err
	}
	r, err := e.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, maxManifest+1))
}

func (a *inActions) Blob(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	e, err := a.client.Find(ctx, blobEntry(d.Digest), false)
	if err != nil {
		return nil, err
	}
	return e.Open(ctx)
}

func (a *inActions) Has(ctx context.Context, d oci.Descriptor) (bool, error) {
	_, err := a.client.Find(ctx, blobEntry(d.Digest), false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (a *inActions) Put(ctx context.Context, d oci.Descriptor, open func() (io.ReadCloser, error), _ []string) error {
	if has, err := a.Has(ctx, d); err != nil || has {
		return err
	}
	err := a.client.Create(ctx, blobEntry(d.Digest), d.Size, open)
	if errors.Is(err, fs.ErrExist) {
		return nil // another job has begun to write the same
	}
	return err
}

func (a *inActions) Commit(ctx context.Context, manifest []byte) error {
	key := fmt.Sprintf("%s%d", a.indexPrefix(), time.Now().UnixNano())
	return a.client.Create(ctx, key, int64(len(manifest)), bytesOf(manifest))
}
