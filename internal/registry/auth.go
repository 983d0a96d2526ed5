package registry

import (
	"context"
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// auth is what requests for one set of scopes at one host authenticate with.
// Its methods are called concurrently; one of them asks for a token, the others
// wait for it.
type auth struct {
	host   *host
	scopes []string // "repository:library/node:pull"

	mu     sync.Mutex
	loaded bool             // the keychain has been asked
	creds  authn.AuthConfig // what it said
	failed error            // why it could not say
	token  string
	renew  time.Time // when token is about to expire
}

// header is the value of Authorization, as far as it is known what the host
// wants; empty before it has asked for anything.
func (a *auth) header(ctx context.Context) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.host.lastChallenge()
	if c == nil {
		return "", nil
	}
	a.load(ctx)
	if a.creds.RegistryToken != "" {
		return "Bearer " + a.creds.RegistryToken, nil
	}
	if strings.EqualFold(c.Scheme, "basic") {
		return basicHeader(a.creds), nil
	}
	if a.token == "" || !time.Now().Before(a.renew) {
		if err := a.exchange(ctx, c); err != nil {
			return "", err
		}
	}
	return "Bearer " + a.token, nil
}

// challenged answers a 401 to a request that was sent with header sent. again
// reports that there is something else to try.
func (a *auth) challenged(ctx context.Context, cs []transport.Challenge, sent string, plain bool) (again bool, err error) {
	i := slices.IndexFunc(cs, func(c transport.Challenge) bool {
		return strings.EqualFold(c.Scheme, "bearer") || strings.EqualFold(c.Scheme, "basic")
	})
	if i < 0 {
		return false, nil
	}
	c := cs[i]
	c.Insecure = plain
	a.mu.Lock()
	defer a.mu.Unlock()
	a.host.setChallenge(&c)
	a.load(ctx)
	switch {
	case a.creds.RegistryToken != "":
		return sent != "Bearer "+a.creds.RegistryToken, nil
	case strings.EqualFold(c.Scheme, "basic"):
		h := basicHeader(a.creds)
		return h != "" && h != sent, nil
	case a.token != "" && sent != "Bearer "+a.token:
		return true, nil // another request got a new token meanwhile
	}
	return true, a.exchange(ctx, &c)
}

// load asks the keychain, once. Without its answer the host is asked
// anonymously: most images are public. describe tells of the failure if that
// is not enough. a.mu is held.
func (a *auth) load(ctx context.Context) {
	if a.loaded || a.host.keychain == nil {
		return
	}
	a.creds, a.failed = a.host.keychain.Get(ctx, a.repository())
	a.loaded = ctx.Err() == nil
}

// repository is what the scopes are about, for the keychain:
// "docker.io/library/node".
func (a *auth) repository() string {
	if len(a.scopes) > 0 {
		if p := strings.Split(a.scopes[0], ":"); len(p) == 3 && p[0] == "repository" {
			return a.host.name + "/" + p[1]
		}
	}
	return a.host.name
}

// exchange gets a token: https://distribution.github.io/distribution/spec/auth/token/.
// a.mu is held.
func (a *auth) exchange(ctx context.Context, c *transport.Challenge) error {
	ctx, cancel := context.WithTimeoutCause(ctx, a.host.stall, errStalled)
	defer cancel()
	scopes := a.scopes
	if s := c.Parameters["scope"]; s != "" && !slices.Contains(scopes, s) {
		scopes = append(scopes[:len(scopes):len(scopes)], s)
	}
	// Exchange refuses token servers on private addresses other than the
	// registry's own, lest a registry make us ask the machine's neighbours.
	// Where the registry is itself such a neighbour there is nothing to guard.
	server := a.host.addr
	if u, err := url.Parse(c.Parameters["realm"]); err == nil && a.host.private {
		server = u.Host
	}
	reg, err := name.NewRegistry(server)
	if err != nil {
		return err
	}
	begun := time.Now()
	t, err := transport.Exchange(ctx, reg, tokenAuth{a.creds}, a.host.client.Transport, scopes, c)
	if err != nil {
		return a.refused(err, nil)
	}
	a.token = t.Token
	if t.AccessToken != "" {
		a.token = t.AccessToken
	}
	if t.RefreshToken != "" {
		a.creds.IdentityToken = t.RefreshToken
	}
	// A token without a term is good for a minute, the specification says.
	term := 60
	if t.ExpiresIn > 0 {
		term = t.ExpiresIn
	}
	a.renew = begun.Add(time.Duration(term) * time.Second * 9 / 10)
	return nil
}

// describe adds to err, an answer, who asked.
func (a *auth) describe(err error, h http.Header) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.refused(err, h)
}

// refused is describe where a.mu is held. The keychain is asked anew the next
// time: the user may log in while a long-lived program runs.
func (a *auth) refused(err error, h http.Header) error {
	e := &statusError{err: err, header: h, user: a.creds.Username, keychain: a.failed}
	if hasStatus(err, http.StatusUnauthorized) {
		a.loaded, a.token = false, ""
	}
	return e
}

// statusError is an answer with an unwanted status.
type statusError struct {
	err      error // a *transport.Error, or the failure of a token exchange
	header   http.Header
	user     string // whose credentials were refused; empty if none were sent
	keychain error  // why no credentials could be sent
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// tokenAuth is credentials as Exchange wants them.
type tokenAuth struct{ authn.AuthConfig }

func (t tokenAuth) Authorization() (*authn.AuthConfig, error) { return &t.AuthConfig, nil }

func basicHeader(c authn.AuthConfig) string {
	switch {
	case c.Username != "" || c.Password != "":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
	case c.Auth != "":
		return "Basic " + c.Auth
	}
	return ""
}

func (h *host) lastChallenge() *transport.Challenge {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.challenge
}

// setChallenge keeps c for requests to come, but for its scope: they may be about
// something else.
func (h *host) setChallenge(c *transport.Challenge) {
	kept := *c
	kept.Parameters = maps.Clone(c.Parameters)
	delete(kept.Parameters, "scope")
	h.mu.Lock()
	defer h.mu.Unlock()
	h.challenge = &kept
}

// parseChallenges reads the values of WWW-Authenticate headers: RFC 9110,
// section 11.6.1. What it cannot read it leaves out.
func parseChallenges(values []string) []transport.Challenge {
	var all []transport.Challenge
	for _, v := range values {
		for v != "" {
			v = strings.TrimLeft(v, " \t,")
			word, rest := cutToken(v)
			if word == "" {
				break
			}
			after := strings.TrimLeft(rest, " \t")
			if !strings.HasPrefix(after, "=") {
				all = append(all, transport.Challenge{Scheme: word, Parameters: map[string]string{}})
				v = after
				continue
			}
			var value string
			value, v = cutValue(strings.TrimLeft(after[1:], " \t"))
			if len(all) > 0 {
				all[len(all)-1].Parameters[strings.ToLower(word)] = value
			}
		}
	}
	return all
}

// cutToken cuts the token (RFC 9110, section 5.6.2) that s begins with.
func cutToken(s string) (token, rest string) {
	i := strings.IndexAny(s, " \t,=\"")
	if i < 0 {
		i = len(s)
	}
	return s[:i], s[i:]
}

// cutValue cuts a token or a quoted string.
func cutValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		return cutToken(s)
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}
