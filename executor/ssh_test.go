package executor

import (
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/plain"
	"github.com/861fb494/build/llb"
)

// TestForward talks to an agent through the socket that a step gets, in a state
// directory whose name is too long for a socket's address.
func TestForward(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: the socket is given away")
	}
	root := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	d, err := plain.New(filepath.Join(root, "snapshots"), plain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	store, err := cache.Open(t.Context(), root, d)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close(t.Context())

	agent := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", agent)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // says what it is told
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(c, c)
			c.Close()
		}
	}()

	x := &execution{Worker: &Worker{Host: Host{Store: store}}}
	socket, stop, err := x.forward(agent, llb.Mount{UID: 12, GID: 34, Mode: 0o640, ModeSet: true})
	if err != nil {
		t.Fatalf("forward(%q) = %v", agent, err)
	}
	st, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if sys := st.Sys().(*syscall.Stat_t); st.Mode() != fs.ModeSocket|0o640 || sys.Uid != 12 || sys.Gid != 34 {
		t.Errorf("the socket has mode %v and owner %d:%d, want %v and 12:34", st.Mode(), sys.Uid, sys.Gid, fs.ModeSocket|0o640)
	}
	dir, err := os.Open(filepath.Dir(socket))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for range 2 {
		c, err := net.Dial("unix", filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), filepath.Base(socket)))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "through")
		c.(*net.UnixConn).CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != "through" {
			t.Errorf("the agent answers %q, %v, want %q", got, err, "through")
		}
		c.Close()
	}
	if err := stop(); err != nil {
		t.Errorf("stop() = %v", err)
	}
	if _, err := os.Stat(filepath.Dir(socket)); !os.IsNotExist(err) {
		t.Errorf("after stop the socket's directory is there: %v", err)
	}
}
