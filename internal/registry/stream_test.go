package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/861fb494/build/internal/oci"
)

// stream is a blob that is made while it is sent: the second half of it comes some
// time after the first.
type stream struct {
	data  []byte
	ended chan struct{}
}

func newStream(data []byte) *stream {
	s := &stream{data: data, ended: make(chan struct{})}
	time.AfterFunc(30*time.Millisecond, func() { close(s.ended) })
	return s
}

func (s *stream) open() (io.ReadCloser, error) {
	half := len(s.data) / 2
	wait := readerFunc(func([]byte) (int, error) { <-s.ended; return 0, io.EOF })
	return io.NopCloser(io.MultiReader(bytes.NewReader(s.data[:half]), wait, bytes.NewReader(s.data[half:]))), nil
}

func (s *stream) desc(ctx context.Context) (oci.Descriptor, error) {
	select {
	case <-s.ended:
		return describe("", s.data), nil
	case <-ctx.Done():
		return oci.Descriptor{}, ctx.Err()
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestPushStream(t *testing.T) {
	for _, tt := range []struct {
		name   string
		server func(http.Handler) func(w http.ResponseWriter, r *http.Request)
		puts   int // of a blob's bytes
	}{
		{"plain", func(h http.Handler) func(http.ResponseWriter, *http.Request) { return h.ServeHTTP }, 0},
		{"length demanded", func(h http.Handler) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPatch && r.ContentLength < 0 {
					w.WriteHeader(http.StatusLengthRequired)
					return
				}
				h.ServeHTTP(w, r)
			}
		}, 1},
		{"no place for the end", func(h http.Handler) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPatch {
					io.Copy(io.Discard, r.Body)
					w.WriteHeader(http.StatusAccepted)
					return
				}
				h.ServeHTTP(w, r)
			}
		}, 1},
		{"connection breaks", func(h http.Handler) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPatch {
					io.CopyN(io.Discard, r.Body, 1000)
					panic(http.ErrAbortHandler)
				}
				h.ServeHTTP(w, r)
			}
		}, 1},
		{"some bytes lost", func(h http.Handler) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPatch {
					io.CopyN(io.Discard, r.Body, 1000)
				}
				h.ServeHTTP(w, r)
			}
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			puts := atomic.Int32{}
			host := newServer(t, func(h http.Handler) http.Handler {
				server := tt.server(h)
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodPut && r.ContentLength != 0 {
						puts.Add(1)
					}
					server(w, r)
				})
			})
			c, s, at := newClient(Options{}), newStream(noise(300_000)), ref(t, host+"/some/app")
			if err := c.PushStream(t.Context(), at, s.open, s.desc); err != nil {
				t.Fatal(err)
			}
			if got, err := readBlob(c, at, describe("", s.data)); err != nil || !bytes.Equal(got, s.data) {
				t.Errorf("the registry has %d bytes, %v, want %d", len(got), err, len(s.data))
			}
			if n := int(puts.Load()); n != tt.puts {
				t.Errorf("the blob was put %d times, want %d", n, tt.puts)
			}
		})
	}
}

// Tokens that are good for one request each: the stream begins anew.
func TestPushStreamUnauthorized(t *testing.T) {
	host := newTokens(t, &tokens{uses: 1})
	c, s, at := newClient(Options{}), newStream(noise(3_000_000)), ref(t, host+"/some/app")
	if err := c.PushStream(t.Context(), at, s.open, s.desc); err != nil {
		t.Fatal(err)
	}
	if got, err := readBlob(c, at, describe("", s.data)); err != nil || !bytes.Equal(got, s.data) {
		t.Errorf("the registry has %d bytes, %v, want %d", len(got), err, len(s.data))
	}
}

// A blob that is there is not sent to its end.
func TestPushStreamStops(t *testing.T) {
	data := noise(1000)
	host := newServer(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch {
				io.Copy(io.Discard, r.Body)
				<-r.Context().Done() // a server that takes for ever
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	c, at := newClient(Options{}), ref(t, host+"/some/app")
	if err := c.PushBlob(t.Context(), at, describe("", data), opener(data), ""); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	known := func(context.Context) (oci.Descriptor, error) { return describe("", data), nil }
	if err := c.PushStream(ctx, at, opener(data), known); err != nil {
		t.Errorf("PushStream of what is there = %v, want nil", err)
	}
}

func TestPushStreamFails(t *testing.T) {
	broken := errors.New("disk fell out")
	never := func(ctx context.Context) (oci.Descriptor, error) {
		<-ctx.Done()
		return oci.Descriptor{}, ctx.Err()
	}
	bad := func(context.Context) (oci.Descriptor, error) { return oci.Descriptor{}, broken }
	denied := newTokens(t, &tokens{uses: 1, user: "u", password: "p"})
	host := newServer(t, nil)
	full := newServer(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch || r.Method == http.MethodPut {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	s := newStream(noise(100))
	for _, tt := range []struct {
		name, host string
		open       func() (io.ReadCloser, error)
		desc       func(context.Context) (oci.Descriptor, error)
		want       string
	}{
		// Without waiting for a blob that takes long to be made.
		{"denied", denied, opener(noise(10)), never, "denies access"},
		{"cannot open", host, func() (io.ReadCloser, error) { return nil, broken }, never, "disk fell out"},
		{"cannot read", host, func() (io.ReadCloser, error) {
			return io.NopCloser(readerFunc(func([]byte) (int, error) { return 0, broken })), nil
		}, bad, "disk fell out"},
		{"refused", full, s.open, s.desc, "413"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		err := newClient(Options{}).PushStream(ctx, ref(t, tt.host+"/a"), tt.open, tt.desc)
		cancel()
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: PushStream = %v, want %q", tt.name, err, tt.want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	slow := func() (io.ReadCloser, error) {
		return io.NopCloser(readerFunc(func([]byte) (int, error) { <-ctx.Done(); return 0, io.EOF })), nil
	}
	if err := newClient(Options{}).PushStream(ctx, ref(t, host+"/a"), slow, never); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("PushStream of a cancelled context = %v, want %v", err, context.DeadlineExceeded)
	}
}
