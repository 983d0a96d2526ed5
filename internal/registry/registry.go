// Package registry is a client of registries that speak the OCI distribution
// protocol: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md.
//
// It pulls through mirrors, authenticates as Docker's configuration says,
// verifies all that it reads by digest, and goes on where a connection broke.
// Nothing is asked of the network, and no credential helper is run, before a
// request needs it.
package registry

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/861fb494/build/internal/oci"
)

// DockerHub is the domain of names that have none.
const DockerHub = "docker.io"

// Keychain yields what to log in with.
type Keychain interface {
	// Get is the credentials for a repository, as "domain/path", or for a
	// registry as a whole, as "domain". The zero value means none are known.
	Get(ctx context.Context, repository string) (authn.AuthConfig, error)
}

// Options configures a Client. The zero value asks registries anonymously,
// without mirrors.
type Options struct {
	Config   Config
	Keychain Keychain // nil: anonymous
	// UserAgent is sent with each request; empty: "build".
	UserAgent string
	// CertDirs hold a directory for each registry, "HOST" or "HOST:PORT", with
	// *.crt for authorities and *.cert, *.key for the client. nil: Docker's
	// and containers' in /etc.
	CertDirs []string
}

// Client talks to registries. It is safe for concurrent use.
type Client struct {
	options Options
	// pause is the first of the growing pauses between tries.
	pause time.Duration
	// stall is how long a transfer may stand still before it counts as broken.
	stall time.Duration

	mu    sync.Mutex
	hosts map[string]*host // by name
}

// New returns a client. It does no I/O.
func New(o Options) *Client {
	if o.UserAgent == "" {
		o.UserAgent = "build"
	}
	if o.CertDirs == nil {
		o.CertDirs = []string{"/etc/containers/certs.d", "/etc/docker/certs.d"}
	}
	return &Client{
		options: o,
		pause:   200 * time.Millisecond,
		stall:   time.Minute,
		hosts:   map[string]*host{},
	}
}

// endpoint is a place that a repository can be had from.
type endpoint struct {
	*host
	repository string // path as this host names it
	mirrorOf   string // domain; empty for the registry itself
}

// endpoints are the mirrors of ref's registry, in order, and then the registry.
func (c *Client) endpoints(ref oci.Reference) ([]endpoint, error) {
	var all []endpoint
	for _, m := range c.options.Config.Registries[ref.Domain].Mirrors {
		name, path, _ := strings.Cut(trimScheme(m), "/")
		h, err := c.host(name)
		if err != nil {
			return nil, err
		}
		repository := ref.Path
		if path = strings.Trim(path, "/"); path != "" {
			repository = path + "/" + repository
		}
		all = append(all, endpoint{host: h, repository: repository, mirrorOf: ref.Domain})
	}
	own, err := c.endpoint(ref)
	if err != nil {
		return nil, err
	}
	return append(all, own), nil
}

// endpoint is the registry that ref names, without its mirrors.
func (c *Client) endpoint(ref oci.Reference) (endpoint, error) {
	h, err := c.host(ref.Domain)
	return endpoint{host: h, repository: ref.Path}, err
}

// host is the one that users call name, set up at its first use.
func (c *Client) host(name string) (*host, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.hosts[name]; h != nil {
		return h, nil
	}
	h, err := newHost(name, c.options, c.stall)
	if err != nil {
		return nil, err
	}
	c.hosts[name] = h
	return h, nil
}

// pull asks the endpoints of ref in turn until f succeeds with one. A mirror
// that fails is passed over; what it said is part of the final error. what is
// the part of the image that is asked for, empty for the manifest.
func (c *Client) pull(ctx context.Context, ref oci.Reference, what string, f func(endpoint) error) error {
	all, err := c.endpoints(ref)
	if err != nil {
		return err
	}
	var mirrors []error
	for _, e := range all {
		if e.mirrorOf == "" {
			err := c.retry(ctx, tries, func() error { return f(e) })
			if err == nil {
				return nil
			}
			return withMirrors(explain(ref, e, "pull", what, err), mirrors)
		}
		if e.isDown() {
			continue
		}
		err := c.retry(ctx, mirrorTries, func() error { return f(e) })
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if unreachable(err) {
			e.setDown()
		}
		mirrors = append(mirrors, explain(ref, e, "pull", what, err))
	}
	panic("registry: a reference without endpoints")
}

func trimScheme(s string) string {
	s = strings.TrimPrefix(s, "https://")
	return strings.TrimPrefix(s, "http://")
}
