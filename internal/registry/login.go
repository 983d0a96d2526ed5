package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/861fb494/build/internal/flock"
)

// Check asks the registry host whether it takes user and password. A registry
// that asks nobody takes any.
func Check(ctx context.Context, o Options, name, user, password string) error {
	o.Keychain = fixed{Username: user, Password: password}
	c := New(o)
	h, err := c.host(name)
	if err != nil {
		return err
	}
	err = c.retry(ctx, tries, func() error {
		resp, err := h.do(ctx, request{method: "GET", ok: []int{200}})
		if err == nil {
			discard(resp)
		}
		return err
	})
	if hasStatus(err, 401) || hasStatus(err, 403) {
		return &requestError{
			text: fmt.Sprintf("log in to %s: wrong user name or password", h.name),
			kind: ErrUnauthorized, err: err,
		}
	}
	if err != nil {
		kind, text := classify(endpoint{host: h}, "log in", err)
		return &requestError{text: "log in: " + text, kind: kind, err: err}
	}
	return nil
}

// fixed is a Keychain of one set of credentials.
type fixed authn.AuthConfig

func (f fixed) Get(context.Context, string) (authn.AuthConfig, error) {
	return authn.AuthConfig(f), nil
}

// Store puts credentials for the registry host into its credential helper, or
// into the file c.Path where there is none. helper is the helper's name, empty
// for the file, which keeps them readable for whoever can read the file.
func (c *Credentials) Store(ctx context.Context, host, user, password string) (helper string, err error) {
	return c.change(ctx, host, func(helper, key string) (json.RawMessage, error) {
		if helper == "" {
			return encodeAuth(user, password), nil
		}
		// The empty entry tells Docker that the helper knows of the server.
		return json.RawMessage("{}"), helperStore(ctx, helper, key, user, password)
	})
}

// Erase removes the credentials for the registry host, from helper and file.
// There being none is an error that wraps ErrNotFound.
func (c *Credentials) Erase(ctx context.Context, host string) error {
	f, err := readAuthFile(c.Path)
	if err != nil {
		return err
	}
	known := false
	for k := range f.Auths {
		known = known || sameHost(k, host)
	}
	helper, key := f.helper(host)
	if !known && helper != "" {
		a, err := helperGet(ctx, helper, key)
		if err != nil {
			return err
		}
		known = filled(a)
	}
	if !known {
		return fmt.Errorf("credentials for %s: %w in %s", host, ErrNotFound, c.Path)
	}
	_, err = c.change(ctx, host, func(helper, key string) (json.RawMessage, error) {
		if helper == "" {
			return nil, nil
		}
		return nil, helperErase(ctx, helper, key)
	})
	return err
}

// change gives host the entry in auths that f returns, or none if that is nil.
// All else in the file stays; two processes do so one after the other.
func (c *Credentials) change(ctx context.Context, host string, f func(helper, key string) (json.RawMessage, error)) (string, error) {
	if c.Path == "" {
		return "", errors.New("store credentials: neither DOCKER_CONFIG nor HOME says where")
	}
	path := c.Path
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p // keep a link to a file elsewhere
	}
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return "", fmt.Errorf("store credentials: %w", err)
	}
	defer unlock()

	file, err := readAuthFile(path)
	if err != nil {
		return "", err
	}
	all, auths := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("store credentials: %w", err)
	}
	if len(data) > 0 {
		if err := json.Unmarshal(data, &all); err != nil {
			return "", fmt.Errorf("store credentials: %s: %w", path, err)
		}
	}
	if a := all["auths"]; a != nil {
		if err := json.Unmarshal(a, &auths); err != nil {
			return "", fmt.Errorf("store credentials: %s: %w", path, err)
		}
	}
	helper, key := file.helper(host)
	entry, err := f(helper, key)
	if err != nil {
		return "", err
	}
	for k := range auths {
		if sameHost(k, host) {
			delete(auths, k)
		}
	}
	if entry != nil {
		auths[hostKeys(host)[0]] = entry
	}
	if all["auths"], err = json.Marshal(auths); err != nil {
		return "", err
	}
	if err := writeSecret(path, all); err != nil {
		return "", fmt.Errorf("store credentials: %w", err)
	}
	return helper, nil
}

// lockDir holds dir, which is made if need be, against other processes.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := flock.Alone(d); err != nil {
		d.Close()
		return nil, err
	}
	return func() { d.Close() }, nil
}

// writeSecret replaces path by v in JSON, for the owner's eyes only.
func writeSecret(path string, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "\t")
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".config-*.json") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.Write(b.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
