// Package gha is a client of the cache service of GitHub Actions, version 2.
//
// The service is not documented. This follows what the clients of GitHub's own
// toolkit do (https://github.com/actions/toolkit, packages/cache): calls of
// github.actions.results.api.v1.CacheService in Twirp's JSON form, by which an
// entry's signed URL is had, and requests of Azure's Blob service at that URL
// (https://learn.microsoft.com/rest/api/storageservices/put-blob).
//
// An entry has a key and never changes. Of those whose key begins with a prefix
// the newest can be asked for.
package gha

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client asks the service with one job's token. It is safe for concurrent use.
type Client struct {
	url, token string
	timeout    time.Duration
	pause      time.Duration // before the second try; it doubles
	block      int           // bytes that are sent at once
	http       *http.Client
}

const (
	tries     = 4
	blockSize = 32 << 20
	// maxAnswer bounds the service's own answers, in bytes.
	maxAnswer = 64 << 10
)

// New returns a client. url is ACTIONS_RESULTS_URL, token
// ACTIONS_RUNTIME_TOKEN; timeout, if not 0, is that of reading or writing one
// entry.
func New(url, token string, timeout time.Duration) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true
	transport.ResponseHeaderTimeout = time.Minute
	return &Client{
		url: strings.TrimSuffix(url, "/"), token: token, timeout: timeout,
		pause: 500 * time.Millisecond, block: blockSize, http: &http.Client{Transport: transport},
	}
}

// version stands for the form of the entries: the service finds only those
// written with the same.
func version() string {
	sum := sha256.Sum256([]byte("build-cache-1"))
	return hex.EncodeToString(sum[:])
}

// Error is an answer other than what was asked for.
type Error struct {
	Status    int
	Code, Msg string // Twirp's
	retry     time.Duration
}

func (e *Error) Error() string {
	if e.Code == "" {
		return fmt.Sprintf("status %d", e.Status)
	}
	return fmt.Sprintf("status %d: %s: %s", e.Status, e.Code, e.Msg)
}

// Is makes what is not there an fs.ErrNotExist, and what is there already an
// fs.ErrExist.
func (e *Error) Is(err error) bool {
	return err == fs.ErrNotExist && e.Status == http.StatusNotFound ||
		err == fs.ErrExist && (e.Status == http.StatusConflict || e.Code == "already_exists")
}

// Find is where the entry key, or with prefix the newest whose key begins so,
// can be read. None is an fs.ErrNotExist.
func (c *Client) Find(ctx context.Context, key string, prefix bool) (*Entry, error) {
	req := map[string]any{"key": key, "version": version()}
	if prefix {
		req["restore_keys"] = []string{key}
	}
	var resp struct {
		OK      bool   `json:"ok"`
		URL     string `json:"signed_download_url"`
		Matched string `json:"matched_key"`
	}
	if err := c.call(ctx, "GetCacheEntryDownloadURL", req, &resp); err != nil {
		return nil, fmt.Errorf("look for cache entry %s: %w", key, err)
	}
	if !resp.OK || resp.URL == "" || !strings.HasPrefix(resp.Matched, key) || !prefix && resp.Matched != key {
		return nil, fmt.Errorf("look for cache entry %s: %w", key, fs.ErrNotExist)
	}
	return &Entry{c: c, key: resp.Matched, url: resp.URL}, nil
}

// Entry is an entry that is there.
type Entry struct {
	c        *Client
	key, url string
}

// Open reads the entry.
func (e *Entry) Open(ctx context.Context) (io.ReadCloser, error) {
	ctx, cancel := e.c.limited(ctx)
	var resp *http.Response
	err := e.c.retry(ctx, func() (err error) {
		resp, err = e.c.blob(ctx, http.MethodGet, e.url, nil, nil)
		return err
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("read cache entry %s: %w", e.key, err)
	}
	return &ending{ReadCloser: resp.Body, cancel: cancel}, nil
}

// ending ends a context when the reading does.
type ending struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (e *ending) Close() error {
	defer e.cancel()
	return e.ReadCloser.Close()
}

func (c *Client) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.timeout > 0 {
		return context.WithTimeout(ctx, c.timeout)
	}
	return context.WithCancel(ctx)
}

// Create writes an entry of so many bytes. One that is there, or that another
// job writes now, is an fs.ErrExist.
func (c *Client) Create(ctx context.Context, key string, size int64, open func() (io.ReadCloser, error)) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write cache entry %s: %w", key, err)
		}
	}()
	ctx, cancel := c.limited(ctx)
	defer cancel()
	var made struct {
		OK  bool   `json:"ok"`
		URL string `json:"signed_upload_url"`
	}
	if err := c.call(ctx, "CreateCacheEntry", map[string]any{"key": key, "version": version()}, &made); err != nil {
		return err
	}
	if !made.OK || made.URL == "" {
		return fmt.Errorf("it was not taken: %w", fs.ErrExist)
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := c.upload(ctx, made.URL, size, r); err != nil {
		return err
	}
	var done struct {
		OK bool `json:"ok"`
	}
	// A 64-bit number is a string in the JSON form of protocol buffers.
	err = c.call(ctx, "FinalizeCacheEntryUpload", map[string]any{"key": key, "version": version(), "size_bytes": strconv.FormatInt(size, 10)}, &done)
	if err == nil && !done.OK {
		err = errors.New("it was not taken")
	}
	return err
}

// upload sends a blob, in blocks if it is larger than one.
func (c *Client) upload(ctx context.Context, to string, size int64, r io.Reader) error {
	buf := make([]byte, min(size, int64(c.block)))
	if size <= int64(c.block) {
		if _, err := io.ReadFull(r, buf); err != nil {
			return err
		}
		return c.put(ctx, to, buf, http.Header{"X-Ms-Blob-Type": {"BlockBlob"}})
	}
	var list bytes.Buffer
	list.WriteString(`<?xml version="1.0" encoding="utf-8"?><BlockList>`)
	for n := 0; size > 0; n++ {
		part := buf[:min(size, int64(len(buf)))]
		if _, err := io.ReadFull(r, part); err != nil {
			return err
		}
		size -= int64(len(part))
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "block-%08d", n)) // all of one length
		at, err := with(to, url.Values{"comp": {"block"}, "blockid": {id}})
		if err != nil {
			return err
		}
		if err := c.put(ctx, at, part, nil); err != nil {
			return err
		}
		list.WriteString("<Latest>" + id + "</Latest>")
	}
	list.WriteString("</BlockList>")
	at, err := with(to, url.Values{"comp": {"blocklist"}})
	if err != nil {
		return err
	}
	return c.put(ctx, at, list.Bytes(), nil)
}

// with adds to a signed URL's query, which stays as it is.
func with(signed string, more url.Values) (string, error) {
	u, err := url.Parse(signed)
	if err != nil {
		return "", fmt.Errorf("the service's URL is not one: %w", err)
	}
	if u.RawQuery != "" {
		u.RawQuery += "&"
	}
	u.RawQuery += more.Encode()
	return u.String(), nil
}

func (c *Client) put(ctx context.Context, to string, data []byte, header http.Header) error {
	return c.retry(ctx, func() error {
		resp, err := c.blob(ctx, http.MethodPut, to, header, data)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

// blob makes a request at a signed URL, which is not told the token.
func (c *Client) blob(ctx context.Context, method, to string, header http.Header, data []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(data))
	if err != nil {
		return nil, errors.New("the service's URL is not one")
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unsigned(err)
	}
	if resp.StatusCode/100 != 2 {
		resp.Body.Close()
		return nil, &Error{Status: resp.StatusCode}
	}
	return resp, nil
}

// unsigned takes the URL, whose query is a secret, out of an error.
func unsigned(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// call calls a method of the service.
func (c *Client) call(ctx context.Context, method string, req, resp any) error {
	if c.url == "" || c.token == "" {
		return errors.New("ACTIONS_RESULTS_URL and ACTIONS_RUNTIME_TOKEN are not set: this is for jobs of GitHub Actions, whose steps get them from an action such as crazy-max/ghaction-github-runtime")
	}
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	return c.retry(ctx, func() error {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/twirp/github.actions.results.api.v1.CacheService/"+method, bytes.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+c.token)
		r.Header.Set("Content-Type", "application/json")
		answer, err := c.http.Do(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
		if err != nil {
			return err
		}
		if answer.StatusCode != http.StatusOK {
			e := &Error{Status: answer.StatusCode}
			_ = json.Unmarshal(data, e) // or it says no more than its status
			if n, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil {
				e.retry = time.Duration(n) * time.Second
			}
			return e
		}
		return json.Unmarshal(data, resp)
	})
}

// maxWait is how long a server may have us wait before another try.
const maxWait = 30 * time.Second

func (c *Client) retry(ctx context.Context, f func() error) error {
	pause := c.pause
	for try := 1; ; try++ {
		err := f()
		var e *Error
		if err == nil || try == tries || ctx.Err() != nil ||
			errors.As(err, &e) && e.Status < 500 && e.Status != http.StatusTooManyRequests {
			return err
		}
		wait := pause
		if e != nil {
			wait = min(max(wait, e.retry), maxWait)
		}
		select {
		case <-time.After(wait):
			pause *= 2
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
