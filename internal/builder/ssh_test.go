package builder

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// keyFile writes a new key, behind a passphrase unless that is empty.
func keyFile(t *testing.T, name, passphrase string) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(key, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// userAgent is an agent with one key, and its socket.
func userAgent(t *testing.T) (agent.Agent, string) {
	t.Helper()
	ring := agent.NewKeyring()
	if err := addKey(ring, keyFile(t, "of the agent", "")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(ring, c)
		}
	}()
	t.Cleanup(func() { l.Close() })
	return ring, path
}

// comments are those of the keys that the agent behind socket lists, and whether
// it signs with the first.
func comments(t *testing.T, socket string) (list []string, client agent.ExtendedAgent) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	client = agent.NewClient(c)
	keys, err := client.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		list = append(list, k.Comment)
		data := []byte("to be signed")
		sig, err := client.Sign(k, data)
		if err != nil {
			t.Fatalf("Sign with %s: %v", k.Comment, err)
		}
		if err := k.Verify(data, sig); err != nil {
			t.Errorf("signature of %s: %v", k.Comment, err)
		}
	}
	return list, client
}

func TestAgents(t *testing.T) {
	_, socket := userAgent(t)
	t.Setenv("SSH_AUTH_SOCK", socket)
	one, two := keyFile(t, "one", ""), keyFile(t, "two", "")
	deep := filepath.Join(t.TempDir(), strings.Repeat("deep/", 25))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{t.TempDir(), deep} {
		a, err := openAgents(map[string]SSH{
			"default": {}, "socket": {Paths: []string{socket}}, "keys": {Paths: []string{one, two}}, "raw": {Paths: []string{socket}, Raw: true},
		}, dir)
		if err != nil {
			t.Fatal(err)
		}
		var made []string
		for id, want := range map[string][]string{"default": {"of the agent"}, "socket": {"of the agent"}, "keys": {"one", "two"}, "raw": {"of the agent"}} {
			path, err := a.socket(id)
			if err != nil {
				t.Fatalf("socket(%q) = %v", id, err)
			}
			for range 2 {
				if got, _ := comments(t, path); !slices.Equal(got, want) {
					t.Errorf("agent %s has keys %q, want %q", id, got, want)
				}
			}
			if id == "raw" {
				continue
			}
			made = append(made, path)
			st, err := os.Stat(path)
			if err != nil || st.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("socket of %s has mode %v, %v, want %v", id, st.Mode(), err, fs.ModeSocket|0o600)
			}
		}
		if _, err := a.socket("other"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("socket(%q) = %v, want %v", "other", err, fs.ErrNotExist)
		}
		a.stop()
		for _, path := range made {
			if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after stop, %s is there: %v", filepath.Dir(path), err)
			}
		}
	}
}

func TestAgentIsReadOnly(t *testing.T) {
	ring, socket := userAgent(t)
	a, err := openAgents(map[string]SSH{"default": {Paths: []string{socket}}}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	_, client := comments(t, a.sockets["default"])
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"Add":       func() error { return client.Add(agent.AddedKey{PrivateKey: key}) },
		"RemoveAll": client.RemoveAll,
		"Lock":      func() error { return client.Lock([]byte("x")) },
		"Extension": func() error { _, err := client.Extension("session-bind@openssh.com", nil); return err },
	} {
		if err := f(); err == nil {
			t.Errorf("%s succeeds, want an error: the agent is the user's", name)
		}
	}
	if keys, err := ring.List(); err != nil || len(keys) != 1 {
		t.Errorf("the user's agent has %d keys, %v, want 1", len(keys), err)
	}
}

func TestAgentErrors(t *testing.T) {
	_, socket := userAgent(t)
	t.Setenv("SSH_AUTH_SOCK", "")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := keyFile(t, "key", "")
	for _, tt := range []struct {
		name string
		in   SSH
		want string
	}{
		{"no agent", SSH{}, "--ssh x: SSH_AUTH_SOCK is not set"},
		{"passphrase", SSH{Paths: []string{keyFile(t, "locked", "secret")}}, "locked is protected by a passphrase: add it to an agent"},
		{"no key", SSH{Paths: []string{text}}, "text: ssh: no key found"},
		{"not there", SSH{Paths: []string{text + ".gone"}}, "text.gone: no such file"},
		{"socket and key", SSH{Paths: []string{key, socket}}, "is a socket: it cannot be given together"},
		{"two sockets", SSH{Paths: []string{socket, socket}}, "is a socket: it cannot be given together"},
		{"raw key", SSH{Paths: []string{key}, Raw: true}, "raw needs one socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := openAgents(map[string]SSH{"x": tt.in}, dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("openAgents(%+v) = %v, want an error with %q", tt.in, err, tt.want)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("openAgents(%+v) leaves %v, %v", tt.in, left, err)
			}
		})
	}
}
