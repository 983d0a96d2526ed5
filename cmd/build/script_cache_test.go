package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/861fb494/build/cache/remote/gha/ghatest"
)

// watched are the servers of a script that write down what they are asked.
type watched struct {
	mu      sync.Mutex
	servers map[string]*requestLog // by the URL's host
}

// requestLog is what a server has been asked since it was last looked at.
type requestLog struct {
	mu    sync.Mutex
	lines []string
	bytes int64 // of the answers
}

// serve starts a server and sets a script's variable to its address.
func (w *watched) serve(ts *testscript.TestScript, name string, h http.Handler) {
	l := &requestLog{}
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c := &countedAnswer{ResponseWriter: rw, status: http.StatusOK}
		h.ServeHTTP(c, r)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lines = append(l.lines, fmt.Sprintf("%s %s %d %d", r.Method, r.URL.Path, c.status, c.n))
		l.bytes += c.n
	}))
	ts.Defer(s.Close)
	addr := strings.TrimPrefix(s.URL, "http://")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[addr] = l
	ts.Setenv(name, addr)
}

type countedAnswer struct {
	http.ResponseWriter
	status int
	n      int64
}

func (c *countedAnswer) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *countedAnswer) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

// proxy NAME ADDR starts a server that passes on to ADDR.
func (w *watched) proxy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: proxy NAME ADDR")
	}
	to, err := url.Parse("http://" + args[1])
	ts.Check(err)
	w.serve(ts, args[0], &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host // where uploads go on
	}})
}

// bucket NAME starts a store with S3's protocol, which has the bucket "cache"
// for the access key "user" with the secret "secret".
func (w *watched) bucket(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: bucket NAME")
	}
	w.serve(ts, args[0], &objects{all: map[string][]byte{}})
}

// actions NAME starts a stand-in for the cache service of GitHub Actions.
func (w *watched) actions(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: actions NAME")
	}
	w.serve(ts, args[0], &ghatest.Service{})
}

// requests ADDR prints what the server has been asked since the last time, and
// a line "N requests, M bytes".
func (w *watched) requests(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: requests ADDR")
	}
	w.mu.Lock()
	l := w.servers[args[0]]
	w.mu.Unlock()
	if l == nil {
		ts.Fatalf("%s is not a server of this script", args[0])
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		fmt.Fprintln(ts.Stdout(), line)
	}
	fmt.Fprintf(ts.Stdout(), "%d requests, %d bytes\n", len(l.lines), l.bytes)
	l.lines, l.bytes = nil, 0
}

// objects is a store with S3's protocol, as far as caches need it.
type objects struct {
	mu  sync.Mutex
	all map[string][]byte
}

func (o *objects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	sum := sha256.Sum256(body)
	if r.Header.Get("X-Amz-Content-Sha256") != hex.EncodeToString(sum[:]) {
		refuse(http.StatusBadRequest, "XAmzContentSHA256Mismatch")
		return
	}
	if !signedBy(r, "user", "secret") {
		refuse(http.StatusForbidden, "SignatureDoesNotMatch")
		return
	}
	key, ok := strings.CutPrefix(r.URL.Path, "/cache/")
	if !ok {
		refuse(http.StatusNotFound, "NoSuchBucket")
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	data, ok := o.all[key]
	switch {
	case r.Method == http.MethodPut:
		o.all[key] = body
	case !ok:
		refuse(http.StatusNotFound, "NoSuchKey")
	default:
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data)
	}
}

// flip FILE OFFSET changes a byte of a file.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET")
	}
	name := ts.MkAbs(args[0])
	data, err := os.ReadFile(name)
	ts.Check(err)
	var at int
	_, err = fmt.Sscan(args[1], &at)
	ts.Check(err)
	data[min(at, len(data)-1)] ^= 1
	ts.Check(os.WriteFile(name, data, 0o644))
}

var signature = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})$`)
})

// signedBy checks a request's signature, AWS Signature Version 4, apart from the
// code that makes it.
func signedBy(r *http.Request, user, secret string) bool {
	m := signature().FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil || m[1] != user {
		return false
	}
	var headers strings.Builder
	for name := range strings.SplitSeq(m[4], ";") {
		v := r.Header.Get(name)
		if name == "host" {
			v = r.Host
		}
		if name == "content-length" {
			v = fmt.Sprint(r.ContentLength)
		}
		headers.WriteString(name + ":" + v + "\n")
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	canonical := sha256.Sum256([]byte(strings.Join([]string{r.Method, path, r.URL.RawQuery, headers.String(), m[4], r.Header.Get("X-Amz-Content-Sha256")}, "\n")))
	key := []byte("AWS4" + secret)
	for _, part := range []string{m[2], m[3], "s3", "aws4_request", strings.Join([]string{
		"AWS4-HMAC-SHA256", r.Header.Get("X-Amz-Date"), m[2] + "/" + m[3] + "/s3/aws4_request", hex.EncodeToString(canonical[:]),
	}, "\n")} {
		key = hmacSum(key, part)
	}
	return hex.EncodeToString(key) == m[5]
}

func hmacSum(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
