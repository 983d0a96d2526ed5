package gha

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/861fb494/build/cache/remote/gha/ghatest"
)

func start(t *testing.T, s *ghatest.Service) *Client {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	c := New(server.URL+"/", ghatest.Token, time.Minute)
	c.pause, c.block = time.Millisecond, 1000
	return c
}

func opener(data []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
}

func TestEntries(t *testing.T) {
	s := &ghatest.Service{}
	c := start(t, s)
	if _, err := c.Find(t.Context(), "a", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Find of nothing = %v, want an fs.ErrNotExist", err)
	}
	for _, size := range []int{0, 1, 1000, 1001, 4500} {
		key := fmt.Sprintf("k#%d", size)
		data := bytes.Repeat([]byte{byte(size)}, size)
		if err := c.Create(t.Context(), key, int64(size), opener(data)); err != nil {
			t.Fatalf("Create of %d bytes: %v", size, err)
		}
		e, err := c.Find(t.Context(), key, false)
		if err != nil {
			t.Fatalf("Find after Create: %v", err)
		}
		r, err := e.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes came back as %d bytes, %v", size, len(got), err)
		}
		if err := c.Create(t.Context(), key, int64(size), opener(data)); !errors.Is(err, fs.ErrExist) {
			t.Errorf("second Create = %v, want an fs.ErrExist", err)
		}
	}
	if s.Blocks() != 5 {
		t.Errorf("4500 bytes came in %d blocks, want 5 of at most 1000", s.Blocks())
	}
}

func TestNewestOfPrefix(t *testing.T) {
	c := start(t, &ghatest.Service{})
	for _, key := range []string{"index-x#1", "index-x#2", "index-xy#3"} {
		if err := c.Create(t.Context(), key, int64(len(key)), opener([]byte(key))); err != nil {
			t.Fatal(err)
		}
	}
	e, err := c.Find(t.Context(), "index-x#", true)
	if err != nil || e.key != "index-x#2" {
		t.Errorf("Find(index-x#) = %+v, %v, want index-x#2", e, err)
	}
	if _, err := c.Find(t.Context(), "index-x", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Find of a key that others begin with = %v, want an fs.ErrNotExist", err)
	}
}

func TestFailures(t *testing.T) {
	var left atomic.Int32
	status := http.StatusServiceUnavailable
	s := &ghatest.Service{Fail: func(*http.Request) int {
		if left.Add(-1) >= 0 {
			return status
		}
		return 0
	}}
	c := start(t, s)
	left.Store(2)
	if err := c.Create(t.Context(), "a", 3, opener([]byte("abc"))); err != nil {
		t.Errorf("Create after two failures = %v", err)
	}
	left.Store(100)
	var e *Error
	if _, err := c.Find(t.Context(), "a", false); !errors.As(err, &e) || e.Status != status {
		t.Errorf("Find while the service is down = %v, want its status", err)
	}
	left.Store(0)
	c.token = "another"
	if _, err := c.Find(t.Context(), "a", false); !errors.As(err, &e) || e.Code != "unauthenticated" || strings.Contains(err.Error(), "another") {
		t.Errorf("Find with another token = %v, want what the service says, without the token", err)
	}
	if _, err := New("", "", 0).Find(t.Context(), "a", false); err == nil || !strings.Contains(err.Error(), "ACTIONS_RUNTIME_TOKEN") {
		t.Errorf("Find outside of a job = %v, want what is missing", err)
	}
	c.token = ghatest.Token
	if err := c.Create(t.Context(), "b", 5, opener([]byte("abc"))); err == nil {
		t.Error("Create with fewer bytes than said succeeds")
	}
	c = start(t, s)
	c.timeout = time.Nanosecond
	if err := c.Create(t.Context(), "c", 3, opener([]byte("abc"))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Create in no time = %v", err)
	}
}

// A signed URL is as good as a password.
func TestSignedURLIsNotTold(t *testing.T) {
	c := New("http://127.0.0.1:1", "x", 0)
	c.pause = time.Millisecond
	e := &Entry{c: c, key: "k", url: "http://127.0.0.1:1/blob?sig=hush"}
	if _, err := e.Open(t.Context()); err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("Open = %v, want an error without the signature", err)
	}
}
