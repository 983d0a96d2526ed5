package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The examples of
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html.
func TestSignature(t *testing.T) {
	b, err := New(Options{Bucket: "examplebucket", Region: "us-east-1", AccessKey: "AKIAIOSFODNN7EXAMPLE", SecretKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"})
	if err != nil {
		t.Fatal(err)
	}
	b.now = func() time.Time { return time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC) }
	for _, tt := range []struct {
		name, method, url string
		header            map[string]string
		sum, want         string
	}{
		{"GET", "GET", "/test.txt", map[string]string{"Range": "bytes=0-9"}, emptySum, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		{
			"PUT", "PUT", "/test$file.text",
			map[string]string{"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
			"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
			"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
		},
		{"a query without a value", "GET", "/?lifecycle", nil, emptySum, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		{"a query", "GET", "/?max-keys=2&prefix=J", nil, emptySum, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
	} {
		r, err := http.NewRequest(tt.method, "https://examplebucket.s3.amazonaws.com"+tt.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range tt.header {
			r.Header.Set(k, v)
		}
		b.sign(r, tt.sum)
		if _, got, _ := strings.Cut(r.Header.Get("Authorization"), "Signature="); got != tt.want {
			t.Errorf("%s: signature %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestURL(t *testing.T) {
	for _, tt := range []struct {
		o         Options
		want, bad string
	}{
		{o: Options{Bucket: "b", Region: "eu-west-1"}, want: "https://b.s3.eu-west-1.amazonaws.com"},
		{o: Options{Bucket: "b", Region: "eu-west-1", PathStyle: true}, want: "https://s3.eu-west-1.amazonaws.com/b"},
		{o: Options{Bucket: "b", Endpoint: "https://store.example/"}, want: "https://b.store.example"},
		{o: Options{Bucket: "b", Endpoint: "http://127.0.0.1:9000"}, want: "http://127.0.0.1:9000/b"},
		{o: Options{Bucket: "b", Endpoint: "http://[::1]:9000"}, want: "http://[::1]:9000/b"},
		{o: Options{Bucket: "b", Endpoint: "http://localhost:9000/s3"}, want: "http://localhost:9000/s3/b"},
		{o: Options{Bucket: ""}, bad: "not a name"},
		{o: Options{Bucket: "a/b"}, bad: "not a name"},
		{o: Options{Bucket: "b", Endpoint: "store.example"}, bad: "not a URL"},
		{o: Options{Bucket: "b", Endpoint: "ftp://store.example"}, bad: "not a URL"},
		{o: Options{Bucket: "b", AccessKey: "x"}, bad: "only one"},
	} {
		b, err := New(tt.o)
		switch {
		case tt.bad != "":
			if err == nil || !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("New(%+v) = %v, want %q", tt.o, err, tt.bad)
			}
		case err != nil:
			t.Errorf("New(%+v) = %v", tt.o, err)
		case b.base.String() != tt.want:
			t.Errorf("New(%+v) asks %s, want %s", tt.o, b.base.String(), tt.want)
		}
	}
}

func TestObjects(t *testing.T) {
	var fail atomic.Int32
	objects := map[string][]byte{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if fail.Add(-1) >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		sum := sha256.Sum256(body)
		if r.Header.Get("X-Amz-Content-Sha256") != hex.EncodeToString(sum[:]) || !strings.Contains(r.Header.Get("Authorization"), "Credential=key/") {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>")
			return
		}
		data, ok := objects[r.RequestURI]
		switch {
		case r.Method == http.MethodPut:
			objects[r.RequestURI] = body
		case !ok:
			w.WriteHeader(http.StatusNotFound)
		default:
			w.Write(data)
		}
	}))
	defer server.Close()
	b, err := New(Options{Bucket: "b", Region: "us-east-1", Endpoint: server.URL, AccessKey: "key", SecretKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	b.pause = time.Millisecond
	const key = "a+b/c d/sha256:00é"
	if _, ok, err := b.Has(t.Context(), key); ok || err != nil {
		t.Fatalf("Has of nothing = %v, %v", ok, err)
	}
	if _, _, err := b.Get(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get of nothing = %v, want an fs.ErrNotExist", err)
	}
	data := []byte("some bytes")
	sum := sha256.Sum256(data)
	fail.Store(2)
	opened := 0
	if err := b.Put(t.Context(), key, hex.EncodeToString(sum[:]), int64(len(data)), func() (io.ReadCloser, error) {
		opened++
		return io.NopCloser(bytes.NewReader(data)), nil
	}); err != nil || opened != 3 {
		t.Fatalf("Put after two failures = %v, opened %d times, want 3", err, opened)
	}
	if _, ok := objects["/b/a%2Bb/c%20d/sha256%3A00%C3%A9"]; !ok {
		t.Errorf("the object's path is not as it was signed: %v", objects)
	}
	r, size, err := b.Get(t.Context(), key)
	if err != nil || size != int64(len(data)) {
		t.Fatalf("Get = %d bytes, %v", size, err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("Get = %q, %v, want %q", got, err, data)
	}
	var e *Error
	if err := b.Put(t.Context(), key, emptySum, 1, func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("x")), nil }); !errors.As(err, &e) || e.Code != "SignatureDoesNotMatch" {
		t.Errorf("Put with a wrong sum = %v, want what the store says", err)
	}
	broken := errors.New("broken")
	if err := b.Put(t.Context(), key, emptySum, 1, func() (io.ReadCloser, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("Put of what cannot be read = %v, want that", err)
	}
	fail.Store(100)
	if _, _, err := b.Get(t.Context(), key); !errors.As(err, &e) || e.Status != 503 {
		t.Errorf("Get from a store that is down = %v, want status 503", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := b.Get(ctx, key); !errors.Is(err, context.Canceled) {
		t.Errorf("Get after the end = %v", err)
	}
}
