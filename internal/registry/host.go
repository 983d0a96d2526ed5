package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// host is one server: a registry, or a mirror of one.
type host struct {
	name     string // as users write it: "docker.io"
	addr     string // what is dialled: "registry-1.docker.io"
	private  bool   // on this machine or in a private network
	client   *http.Client
	keychain Keychain
	stall    time.Duration
	schemes  []string // in the order to be tried

	mu        sync.Mutex
	scheme    string               // the one of schemes that answered
	down      time.Time            // until when a mirror is passed over
	challenge *transport.Challenge // the last one; nil before the first
	auths     map[string]*auth     // by scopes
}

// downFor is how long a mirror that could not be reached is not tried again.
const downFor = 30 * time.Second

func newHost(name string, o Options, stall time.Duration) (*host, error) {
	conf := o.Config.Registries[name]
	tlsConfig, custom, err := conf.tlsConfig(name, o.CertDirs)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", name, err)
	}
	h := &host{
		name: name, addr: name, keychain: o.Keychain, stall: stall,
		private: loopback(name) || privateIP(name),
		auths:   map[string]*auth{},
	}
	if name == DockerHub || name == "index.docker.io" {
		h.name, h.addr = DockerHub, "registry-1.docker.io"
	}
	plain, insecure := conf.HTTP != nil && *conf.HTTP, conf.Insecure != nil && *conf.Insecure
	byDefault := conf.HTTP == nil && conf.Insecure == nil && !custom && loopback(name)
	h.private = h.private || plain || insecure
	tlsConfig.InsecureSkipVerify = insecure || byDefault
	switch {
	case byDefault:
		// Plain HTTP first: simple servers wait for ever for the end of the line
		// that a TLS handshake seems to them, and nobody listens in here.
		h.schemes = []string{"http", "https"}
	case plain && insecure:
		h.schemes = []string{"https", "http"}
	case plain:
		h.schemes = []string{"http"}
	default:
		h.schemes = []string{"https"}
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.TLSClientConfig = tlsConfig
	base.DialContext = (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	base.MaxIdleConnsPerHost = 8
	base.WriteBufferSize = 64 << 10 // two of the pieces that net/http sends a layer in
	base.DisableCompression = true  // blobs are compressed, and counted, as they are
	h.client = &http.Client{
		Transport:     userAgent{base, o.UserAgent},
		CheckRedirect: checkRedirect,
	}
	return h, nil
}

// userAgent sets the header of that name.
type userAgent struct {
	http.RoundTripper
	name string
}

func (u userAgent) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", u.name)
	return u.RoundTripper.RoundTrip(r)
}

// checkRedirect keeps credentials from other servers: net/http passes them on to
// subdomains, where a storage service would refuse or log them.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("more than 10 redirects")
	}
	first := via[0].URL
	if first.Scheme == "https" && r.URL.Scheme != "https" {
		return fmt.Errorf("redirect from HTTPS to %s refused", r.URL.Redacted())
	}
	if r.URL.Host != first.Host && server(r.URL) != server(first) {
		r.Header.Del("Authorization")
	}
	return nil
}

// server is the host and port that u leads to.
func server(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// is reports whether u is this host's, asked as it is to be: what is for it alone
// may go there.
func (h *host) is(u *url.URL) bool {
	return slices.Contains(h.schemes, u.Scheme) && server(u) == server(&url.URL{Scheme: u.Scheme, Host: h.addr})
}

// location is where resp, of this host, has the upload go on. A registry that does not
// know that it is behind TLS says http of itself.
func (h *host) location(resp *http.Response) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil || u.Scheme == "https" || resp.Request.URL.Scheme != "https" {
		return u, err
	}
	if !strings.EqualFold(u.Hostname(), resp.Request.URL.Hostname()) {
		return nil, fmt.Errorf("from HTTPS to %s: refused", u.Redacted())
	}
	u.Scheme, u.Host = "https", resp.Request.URL.Host
	return u, nil
}

// request is what do sends. The zero values of all but method are usual.
type request struct {
	method string
	path   string   // below /v2/
	url    *url.URL // instead of path
	header http.Header
	scopes []string // of the token
	// body is opened for each try; it has size bytes, or unknownSize.
	body func() (io.ReadCloser, error)
	size int64
	ok   []int // statuses that are no error
	// foreign is a URL that is not the registry's: no credentials go there.
	foreign bool
}

const unknownSize = -1

// do sends r with the credentials it needs, once, or twice where the server
// asks for credentials or for fresh ones. The error of an unwanted status is a
// *transport.Error. Reading the body fails once it stands still too long.
func (h *host) do(ctx context.Context, r request) (*http.Response, error) {
	if r.url == nil {
		scheme, err := h.pickScheme(ctx)
		if err != nil {
			return nil, err
		}
		r.url, err = url.Parse(scheme + "://" + h.addr + "/v2/" + r.path)
		if err != nil {
			return nil, err
		}
	}
	a := h.auth(r.scopes)
	for again := false; ; again = true {
		header, err := "", error(nil)
		own := !r.foreign && h.is(r.url)
		if own {
			if header, err = a.header(ctx); err != nil {
				return nil, err
			}
		}
		resp, err := h.send(ctx, r, header)
		if err != nil {
			return nil, err
		}
		if own && resp.StatusCode == http.StatusUnauthorized && h.is(resp.Request.URL) && !again {
			challenges := parseChallenges(resp.Header.Values("WWW-Authenticate"))
			retry, err := a.challenged(ctx, challenges, header, r.url.Scheme == "http")
			if err != nil || retry {
				discard(resp)
			}
			if err != nil {
				return nil, err
			}
			if retry {
				continue
			}
		}
		if err := transport.CheckError(resp, r.ok...); err != nil {
			resp.Body.Close()
			return nil, a.describe(err, resp.Header)
		}
		return resp, nil
	}
}

// discard ends a response that does not matter. Its text is read, as only then
// the connection can be used again.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 16<<10) // may end early
	resp.Body.Close()
}

// send does one exchange.
func (h *host) send(ctx context.Context, r request, authorization string) (*http.Response, error) {
	stall := h.stall
	if r.body != nil {
		stall *= 5 // registries may take minutes to store what they got
	}
	ctx, dog := newWatchdog(ctx, stall)
	req, err := http.NewRequestWithContext(ctx, r.method, r.url.String(), nil)
	if err != nil {
		dog.stop()
		return nil, err
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	var local *localErrors
	if r.body != nil {
		local = &localErrors{open: r.body, size: r.size, dog: dog}
		if req.Body, err = local.body(); err != nil {
			dog.stop()
			return nil, err
		}
		req.GetBody = local.body
		req.ContentLength = r.size
		if r.size == 0 {
			req.Body.Close()
			req.Body = http.NoBody
		}
	}
	resp, err := h.client.Do(req)
	if err != nil {
		cause := context.Cause(ctx)
		dog.stop()
		switch {
		case local.err() != nil:
			return nil, local.err()
		case cause != nil:
			return nil, cause
		}
		// The request is named by whoever asked for it.
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return nil, err
	}
	dog.timer.Stop()
	resp.Body = &watchedBody{ReadCloser: resp.Body, ctx: ctx, dog: dog}
	return resp, nil
}

// pickScheme finds out what a server speaks, where HTTP and HTTPS are allowed.
func (h *host) pickScheme(ctx context.Context) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.scheme != "" {
		return h.scheme, nil
	}
	if len(h.schemes) == 1 {
		h.scheme = h.schemes[0]
		return h.scheme, nil
	}
	var first error
	refused := false // with 400, what servers answer on a port for TLS
	for _, s := range h.schemes {
		u := &url.URL{Scheme: s, Host: h.addr, Path: "/v2/"}
		resp, err := h.send(ctx, request{method: http.MethodHead, url: u}, "")
		if err == nil {
			discard(resp)
			if s == "http" && resp.StatusCode == http.StatusBadRequest {
				refused = true
				continue
			}
			h.scheme = s
			return s, nil
		}
		if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" || ctx.Err() != nil {
			return "", err // nobody is there; the other scheme has the same port
		}
		if first == nil {
			first = err
		}
	}
	if refused {
		h.scheme = "http" // it meant something else
		return h.scheme, nil
	}
	return "", first
}

func (h *host) isDown() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.down)
}

func (h *host) setDown() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = time.Now().Add(downFor)
}

// auth is the state of authentication for scopes; it is shared by requests of
// the same scopes.
func (h *host) auth(scopes []string) *auth {
	key := strings.Join(scopes, " ")
	h.mu.Lock()
	defer h.mu.Unlock()
	a := h.auths[key]
	if a == nil {
		a = &auth{host: h, scopes: scopes}
		h.auths[key] = a
	}
	return a
}
