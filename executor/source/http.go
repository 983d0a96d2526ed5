package source

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// HTTP is the source of files at URLs, for one build. What it downloads it
// keeps in a directory, which several processes may share:
//
//	<key>.json              what the server said last of a URL, and a line with
//	                        the sha256 of that
//	<key>-<algorithm>-<hex> a download, by its digest; its time is Last-Modified
//
// where key is made of the URL. Anything in it may be deleted at any time.
type HTTP struct {
	// Secret, if set, tells a secret of the build's, and whether it was given:
	// HTTP_AUTH_HEADER_HOST and HTTP_AUTH_TOKEN_HOST are sent to that host.
	Secret func(name string) ([]byte, bool)
	// Offline asks no server: what is not here is an error.
	Offline bool
	// Temp is a directory of the process's own, in the same file system; nil:
	// temporary files are in the directory, too.
	Temp func() (string, error)

	dir    string
	client *http.Client
	pause  time.Duration // before the second try

	mu   sync.Mutex
	urls map[string]*fetched // by URL
}

// fetched is what a URL was in this build; its mutex is held while it is asked.
type fetched struct {
	mu     sync.Mutex
	record record
}

// record is <key>.json.
type record struct {
	URL      string     `json:"url"`
	ETag     string     `json:"etag,omitempty"`
	Digest   oci.Digest `json:"digest"` // sha256
	Filename string     `json:"filename"`
}

// NewHTTP keeps downloads in dir, which is made at the first. client may be
// nil; the environment's proxies are used then.
func NewHTTP(dir string, client *http.Client) *HTTP {
	if client == nil {
		client = &http.Client{CheckRedirect: checkRedirect}
	}
	return &HTTP{dir: dir, client: client, pause: time.Second, urls: map[string]*fetched{}}
}

// Pin gives s the digest that the user demands, which asks nobody, or else that
// of what the URL yields now; what was downloaded before is used where the
// server gives it the same ETag. A Filename that is empty is derived from the
// answer.
func (h *HTTP) Pin(ctx context.Context, s llb.Source) (llb.Source, error) {
	if s.Digest != "" {
		s.Filename = fileName(s.Ref, s.Filename, nil)
		return s, nil
	}
	if s.Checksum != "" {
		if err := s.Checksum.Validate(); err != nil {
			return s, fmt.Errorf("checksum %q: %w", string(s.Checksum), err)
		}
		s.Digest = s.Checksum
		s.Filename = fileName(s.Ref, s.Filename, nil)
		return s, nil
	}
	r, err := h.ask(ctx, s.Ref)
	if err != nil {
		return s, err
	}
	s.Digest = r.Digest
	if s.Filename == "" {
		s.Filename = r.Filename
	}
	s.Filename = fileName(s.Ref, s.Filename, nil)
	return s, nil
}

// Open puts the file of a pinned source into a directory of its own, with the
// name, mode and owner that s says and the time that the server said.
func (h *HTTP) Open(ctx context.Context, s llb.Source) (c Content, err error) {
	if s.Digest == "" {
		return c, fmt.Errorf("download %s: not pinned", redact(s.Ref))
	}
	if err := s.Digest.Validate(); err != nil {
		return c, fmt.Errorf("download %s: %w", redact(s.Ref), err)
	}
	for {
		c, err = h.open(ctx, s)
		if !errors.Is(err, errDamaged) {
			return c, err
		}
		// It is removed now: the next try downloads it.
	}
}

func (h *HTTP) open(ctx context.Context, s llb.Source) (c Content, err error) {
	in, err := os.Open(h.dataPath(s.Ref, s.Digest))
	if errors.Is(err, os.ErrNotExist) {
		if _, err := h.download(ctx, s.Ref, "", s.Digest); err != nil {
			return c, err
		}
		in, err = os.Open(h.dataPath(s.Ref, s.Digest))
	}
	if err != nil {
		return c, fmt.Errorf("download %s: %w", redact(s.Ref), err)
	}
	defer in.Close()
	_ = h.touch(s.Ref, s.Digest) // it may be gone by now, and is open
	temp, err := h.temp()
	if err != nil {
		return c, err
	}
	dir, err := os.MkdirTemp(temp, "out-")
	if err != nil {
		return c, err
	}
	if err := place(filepath.Join(dir, fileName(s.Ref, s.Filename, nil)), in, s); err != nil {
		os.RemoveAll(dir)
		return c, fmt.Errorf("download %s: %w", redact(s.Ref), err)
	}
	return Content{Dir: dir}, os.Chmod(dir, 0o755)
}

var errDamaged = errors.New("the copy on disk is damaged")

// place copies in to path, verified by s's digest: the download may have been
// damaged since.
func place(path string, in *os.File, s llb.Source) error {
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	sum := s.Digest.Algorithm().Hash()
	if _, err := io.Copy(io.MultiWriter(out, sum), in); err != nil {
		return err
	}
	if got := digest.NewDigest(s.Digest.Algorithm(), sum); got != s.Digest {
		err := fmt.Errorf("%w: digest %s instead of %s", errDamaged, got, s.Digest)
		if rerr := os.Remove(in.Name()); rerr != nil {
			return fmt.Errorf("%v: %w", err, rerr) // not an errDamaged: there is no next try
		}
		return err
	}
	if s.UID != 0 || s.GID != 0 {
		if err := out.Chown(s.UID, s.GID); err != nil {
			return err
		}
	}
	mode := s.Mode
	if mode == 0 {
		mode = 0o600
	}
	if err := syscall.Fchmod(int(out.Fd()), mode); err != nil { // after chown, which clears setuid
		return err
	}
	return errors.Join(out.Close(), os.Chtimes(path, st.ModTime(), st.ModTime()))
}

// ask is what a URL is now; in one build it is asked once.
func (h *HTTP) ask(ctx context.Context, u string) (record, error) {
	h.mu.Lock()
	f := h.urls[u]
	if f == nil {
		f = &fetched{}
		h.urls[u] = f
	}
	h.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.record.Digest != "" {
		return f.record, nil
	}
	old := h.readRecord(u)
	if old.ETag != "" {
		if err := h.touch(u, old.Digest); err != nil {
			old = record{}
		}
	}
	if h.Offline {
		if old.Digest == "" || h.touch(u, old.Digest) != nil {
			return record{}, h.notHere(u)
		}
		f.record = old
		return old, nil
	}
	r, err := h.download(ctx, u, old.ETag, "")
	if errors.Is(err, errNotModified) {
		r, err = old, nil
	}
	if err == nil {
		f.record = r
	}
	return r, err
}

func (h *HTTP) notHere(u string) error {
	return fmt.Errorf("download %s: it is not here, and no server is asked (offline)", redact(u))
}

// errNotModified: the server has what the ETag was given to.
var errNotModified = errors.New("not modified")

// download gets a URL, up to three times if it fails in passing. With want it
// must have that digest.
func (h *HTTP) download(ctx context.Context, u, etag string, want oci.Digest) (record, error) {
	if h.Offline {
		return record{}, h.notHere(u)
	}
	for i := range 3 {
		r, again, err := h.try(ctx, u, etag, want)
		if err == nil || errors.Is(err, errNotModified) {
			return r, err
		}
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
		if !again || i == 2 {
			return r, fmt.Errorf("download %s: %w", redact(u), err)
		}
		select {
		case <-time.After(h.pause << i):
		case <-ctx.Done():
		}
	}
	panic("unreachable")
}

// authorize adds what the build has to show the host. It is not sent on to
// another one that the host redirects to.
func (h *HTTP) authorize(req *http.Request) {
	if h.Secret == nil {
		return
	}
	for _, s := range []struct{ name, scheme string }{{"HTTP_AUTH_HEADER_", ""}, {"HTTP_AUTH_TOKEN_", "Bearer "}} {
		if v, ok := h.Secret(s.name + req.URL.Hostname()); ok {
			req.Header.Set("Authorization", s.scheme+strings.TrimSpace(string(v)))
			return
		}
	}
}

// checkRedirect keeps the credentials of one server from others: net/http passes them
// on to subdomains, other ports, and from HTTPS to HTTP.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("more than 10 redirects")
	}
	if first := via[0].URL; r.URL.Host != first.Host || r.URL.Scheme != first.Scheme {
		r.Header.Del("Authorization")
	}
	return nil
}

func (h *HTTP) try(ctx context.Context, u, etag string, want oci.Digest) (r record, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return r, false, err
	}
	req.Header.Set("User-Agent", "build")
	h.authorize(req)
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		if e := (*url.Error)(nil); errors.As(err, &e) {
			err = e.Err // it repeats the URL, with its password
		}
		return r, !errors.Is(err, syscall.ECONNREFUSED), err
	}
	defer resp.Body.Close()
	if etag != "" && (resp.StatusCode == http.StatusNotModified || resp.StatusCode == http.StatusOK && sameETag(resp.Header.Get("ETag"), etag)) {
		return r, false, errNotModified // some servers do not know If-None-Match
	}
	if resp.StatusCode != http.StatusOK {
		passing := resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests
		return r, passing, fmt.Errorf("the server answered %s", resp.Status)
	}
	r = record{URL: u, ETag: resp.Header.Get("ETag"), Filename: fileName(u, "", resp.Header)}
	return h.save(r, resp, want)
}

func (h *HTTP) temp() (string, error) {
	if h.Temp == nil {
		return h.dir, nil
	}
	return h.Temp()
}

// save stores a body, first under a temporary name.
func (h *HTTP) save(r record, resp *http.Response, want oci.Digest) (record, bool, error) {
	if err := os.MkdirAll(h.dir, 0o755); err != nil {
		return r, false, err
	}
	temp, err := h.temp()
	if err != nil {
		return r, false, err
	}
	f, err := os.CreateTemp(temp, "tmp-")
	if err != nil {
		return r, false, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	sum := sha256.New()
	w := io.MultiWriter(f, sum)
	asked := sum
	if want != "" && want.Algorithm() != digest.SHA256 {
		asked = want.Algorithm().Hash()
		w = io.MultiWriter(f, sum, asked)
	}
	body := &bodyErrors{r: resp.Body}
	if _, err := io.Copy(w, body); err != nil {
		return r, body.err != nil, err
	}
	r.Digest = digest.NewDigest(digest.SHA256, sum)
	name := r.Digest
	if want != "" {
		if name = digest.NewDigest(want.Algorithm(), asked); name != want {
			return r, false, &MismatchError{Got: name, Want: want}
		}
	}
	at := time.Unix(0, 0) // a time that is the same in each build
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		at = t
	}
	if err := errors.Join(f.Chmod(0o644), f.Close(), os.Chtimes(f.Name(), at, at)); err != nil {
		return r, false, err
	}
	if err := os.Rename(f.Name(), h.dataPath(r.URL, name)); err != nil {
		return r, false, err
	}
	h.sweep(r.URL, name)
	if want == "" {
		err = h.writeRecord(r)
	}
	return r, false, err
}

// MismatchError is a file that is not the one that was asked for.
type MismatchError struct{ Got, Want oci.Digest }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("digest mismatch: it has %s, expected %s", e.Got, e.Want)
}

// bodyErrors tells errors of the connection from those of the disk.
type bodyErrors struct {
	r   io.Reader
	err error
}

func (b *bodyErrors) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// sameETag compares weakly: RFC 9110, section 8.8.3.2.
func sameETag(a, b string) bool {
	return a != "" && strings.TrimPrefix(a, "W/") == strings.TrimPrefix(b, "W/")
}

// fileName is name, else what the answer's Content-Disposition says, else the
// last part of the URL's path; always one that can stand in a directory.
func fileName(u, name string, header http.Header) string {
	if name == "" {
		if _, params, err := mime.ParseMediaType(header.Get("Content-Disposition")); err == nil && !strings.HasSuffix(params["filename"], "/") {
			name = params["filename"]
		}
	}
	if name == "" {
		if u, err := url.Parse(u); err == nil {
			name = u.Path
		}
	}
	name = path.Base(strings.TrimSpace(name))
	if name == "." || name == ".." || name == "/" || strings.ContainsFunc(name, unicode.IsControl) {
		return "download"
	}
	return name
}

// redact hides the password of a URL.
func redact(u string) string {
	p, err := url.Parse(u)
	if err != nil {
		return u
	}
	return p.Redacted()
}
