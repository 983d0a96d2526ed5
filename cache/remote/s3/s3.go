// Package s3 reads and writes objects of a bucket, by the REST API of Amazon S3
// as other stores have it too:
// https://docs.aws.amazon.com/AmazonS3/latest/API/.
package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// MaxObject is the largest object that is written in one request, in bytes.
const MaxObject = 5 << 30

// Options say where a bucket is, and who asks. Bucket and Region are required.
type Options struct {
	Bucket, Region string
	// Endpoint is the store's URL; empty: Amazon's, of the region.
	Endpoint string
	// PathStyle names the bucket in the path and not in the host. It is always
	// so where the endpoint's host is an IP address or localhost.
	PathStyle bool
	// Without an AccessKey, requests are not signed: the bucket is public.
	AccessKey, SecretKey, SessionToken string
}

// Bucket is a bucket. It is safe for concurrent use.
type Bucket struct {
	o     Options
	base  url.URL // of the bucket; without a trailing slash
	now   func() time.Time
	pause time.Duration // before the second try; it doubles
	http  *http.Client
}

// tries is how often a request is made that failed by the server's fault.
const tries = 4

// New returns the bucket. It does no I/O.
func New(o Options) (*Bucket, error) {
	if o.Bucket == "" || strings.ContainsAny(o.Bucket, "/?#@: ") {
		return nil, fmt.Errorf("bucket %q is not a name", o.Bucket)
	}
	if (o.AccessKey == "") != (o.SecretKey == "") {
		return nil, errors.New("of access key and secret key only one is given")
	}
	endpoint := o.Endpoint
	if endpoint == "" {
		endpoint = "https://s3." + o.Region + ".amazonaws.com"
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("endpoint_url %q is not a URL such as https://s3.example", endpoint)
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	host := u.Hostname()
	if o.PathStyle || host == "localhost" || net.ParseIP(host) != nil {
		u.Path += "/" + o.Bucket
	} else {
		u.Host = o.Bucket + "." + u.Host
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // the bytes of an object as they are
	transport.ResponseHeaderTimeout = time.Minute
	return &Bucket{
		o: o, base: *u, now: time.Now, pause: 200 * time.Millisecond,
		// A redirect to another region would need another signature.
		http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

// Error is what the store answered instead of what was asked for.
type Error struct {
	Status        int
	Code, Message string
}

func (e *Error) Error() string {
	if e.Code == "" {
		return fmt.Sprintf("status %d", e.Status)
	}
	return fmt.Sprintf("status %d: %s: %s", e.Status, e.Code, e.Message)
}

// Is makes what is not there an fs.ErrNotExist.
func (e *Error) Is(err error) bool {
	return err == fs.ErrNotExist && e.Status == http.StatusNotFound
}

// Get opens an object; size is -1 where the store does not tell.
func (b *Bucket) Get(ctx context.Context, key string) (body io.ReadCloser, size int64, err error) {
	resp, err := b.do(ctx, http.MethodGet, key, emptySum, 0, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("get %s from bucket %s: %w", key, b.o.Bucket, err)
	}
	return resp.Body, resp.ContentLength, nil
}

// Has reports whether an object is there, and its size.
func (b *Bucket) Has(ctx context.Context, key string) (size int64, ok bool, err error) {
	resp, err := b.do(ctx, http.MethodHead, key, emptySum, 0, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for %s in bucket %s: %w", key, b.o.Bucket, err)
	}
	resp.Body.Close()
	return resp.ContentLength, true, nil
}

// Put writes an object of so many bytes; sum is their SHA-256, in hexadecimal
// digits. open is called for each try.
func (b *Bucket) Put(ctx context.Context, key, sum string, size int64, open func() (io.ReadCloser, error)) error {
	if size > MaxObject {
		return fmt.Errorf("put %s into bucket %s: %d bytes are more than S3 takes at once", key, b.o.Bucket, size)
	}
	resp, err := b.do(ctx, http.MethodPut, key, sum, size, open)
	if err != nil {
		return fmt.Errorf("put %s into bucket %s: %w", key, b.o.Bucket, err)
	}
	return resp.Body.Close()
}

// do makes a request until it succeeds or fails by our fault.
func (b *Bucket) do(ctx context.Context, method, key, sum string, size int64, open func() (io.ReadCloser, error)) (*http.Response, error) {
	pause := b.pause
	for try := 1; ; try++ {
		resp, err := b.once(ctx, method, key, sum, size, open)
		if err == nil || try == tries || !again(err) {
			return resp, err
		}
		select {
		case <-time.After(pause):
			pause *= 2
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// bodyError is a failure of what is to be sent.
type bodyError struct{ error }

func (e bodyError) Unwrap() error { return e.error }

func again(err error) bool {
	var own bodyError
	var e *Error
	switch {
	case errors.As(err, &own), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &e):
		return e.Status >= 500 || e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout
	}
	return true
}

func (b *Bucket) once(ctx context.Context, method, key, sum string, size int64, open func() (io.ReadCloser, error)) (*http.Response, error) {
	u := b.base
	u.Path += "/" + key
	u.RawPath = escapePath(u.Path)
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.URL = &u // as it is signed, whatever url.Parse makes of it
	if open != nil {
		body, err := open()
		if err != nil {
			return nil, bodyError{err}
		}
		req.Body, req.ContentLength = &sending{ReadCloser: body}, size
		if size == 0 {
			body.Close()
			req.Body = http.NoBody
		}
	}
	if b.o.AccessKey != "" {
		b.sign(req, sum)
	}
	resp, err := b.http.Do(req)
	if s, ok := req.Body.(*sending); ok && err != nil && s.err != nil {
		return nil, bodyError{s.err}
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	e := &Error{Status: resp.StatusCode}
	var text struct {
		Code    string `xml:"Code"`
		Message string `xml:"Message"`
	}
	if data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10)); err == nil && xml.Unmarshal(data, &text) == nil {
		e.Code, e.Message = text.Code, text.Message
	}
	return nil, e
}

// sending remembers why a body could not be read: no other try mends that.
type sending struct {
	io.ReadCloser
	err error
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
