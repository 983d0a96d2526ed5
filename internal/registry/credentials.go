package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

// hubKey is what Docker's files and helpers call Docker Hub.
const hubKey = "https://index.docker.io/v1/"

// Credentials are those in Docker's config.json and in the credential helpers
// that it names: https://docs.docker.com/reference/cli/docker/#docker-cli-configuration-file-configjson-properties.
// Each Get reads the files anew, so that a login is seen at once.
type Credentials struct {
	// Path is config.json, to which logins are written. It need not exist.
	Path string
	// Fallbacks are further files of that form, read only.
	Fallbacks []string
	// Inline is JSON of that form which goes before all files.
	Inline []byte
}

// DefaultCredentials are where the environment says they are: DOCKER_AUTH_CONFIG
// (JSON); DOCKER_CONFIG, else ~/.docker; and where containers-auth.json(5) says.
func DefaultCredentials() *Credentials {
	c := &Credentials{Inline: []byte(os.Getenv("DOCKER_AUTH_CONFIG"))}
	home, _ := os.UserHomeDir()
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		c.Path = filepath.Join(dir, "config.json")
	} else if home != "" {
		c.Path = filepath.Join(home, ".docker", "config.json")
	}
	if p := os.Getenv("REGISTRY_AUTH_FILE"); p != "" {
		c.Fallbacks = append(c.Fallbacks, p)
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		c.Fallbacks = append(c.Fallbacks, filepath.Join(dir, "containers", "auth.json"))
	}
	if dir, err := os.UserConfigDir(); err == nil {
		c.Fallbacks = append(c.Fallbacks, filepath.Join(dir, "containers", "auth.json"))
	}
	return c
}

// authFile is the part of config.json that is about credentials.
type authFile struct {
	Auths       map[string]json.RawMessage `json:"auths"` // authn.AuthConfig, decoded when used
	CredsStore  string                     `json:"credsStore"`
	CredHelpers map[string]string          `json:"credHelpers"`
}

// Get implements Keychain.
func (c *Credentials) Get(ctx context.Context, repository string) (authn.AuthConfig, error) {
	if len(c.Inline) > 0 {
		var f authFile
		if err := json.Unmarshal(c.Inline, &f); err != nil {
			return authn.AuthConfig{}, fmt.Errorf("read DOCKER_AUTH_CONFIG: %w", err)
		}
		if a, err := f.lookup(repository); err != nil || filled(a) {
			return a, err
		}
	}
	var failed error
	for _, p := range append([]string{c.Path}, c.Fallbacks...) {
		f, err := readAuthFile(p)
		if err != nil {
			return authn.AuthConfig{}, err
		}
		a, err := f.get(ctx, repository)
		if err == nil && filled(a) {
			return a, nil
		}
		if failed == nil {
			failed = err
		}
	}
	return authn.AuthConfig{}, failed
}

// readAuthFile gives an empty one for a path that is empty or not there.
func readAuthFile(path string) (authFile, error) {
	var f authFile
	if path == "" {
		return f, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
		return f, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err != nil {
		return f, fmt.Errorf("read credentials: %s: %w", path, err)
	}
	return f, nil
}

// get asks the helper for the registry if there is one; what it does not know
// may stand in the file.
func (f authFile) get(ctx context.Context, repository string) (authn.AuthConfig, error) {
	host, _, _ := strings.Cut(repository, "/")
	helper, key := f.helper(host)
	var failed error
	if helper != "" {
		a, err := helperGet(ctx, helper, key)
		if err == nil && filled(a) {
			return a, nil
		}
		failed = err
	}
	if a, err := f.lookup(repository); err != nil || filled(a) {
		return a, err
	}
	return authn.AuthConfig{}, failed
}

// helper is the name of host's credential helper, and what it calls the host.
func (f authFile) helper(host string) (name, key string) {
	for _, k := range hostKeys(host) {
		if h := f.CredHelpers[k]; h != "" {
			return h, k
		}
	}
	return f.CredsStore, hostKeys(host)[0]
}

// lookup finds the entry of auths for a repository: the longest prefix of it,
// then the registry under any of the names that tools have given it. It is the
// zero value where there is none.
func (f authFile) lookup(repository string) (authn.AuthConfig, error) {
	host, _, isRepository := strings.Cut(repository, "/")
	var keys []string
	for p := repository; isRepository && strings.Contains(p, "/"); p = p[:strings.LastIndex(p, "/")] {
		keys = append(keys, p)
	}
	keys = append(keys, hostKeys(host)...)
	for _, k := range slices.Sorted(maps.Keys(f.Auths)) {
		if sameHost(k, host) {
			keys = append(keys, k)
		}
	}
	for _, k := range keys {
		raw, ok := f.Auths[k]
		if !ok {
			continue
		}
		var a authn.AuthConfig
		if err := json.Unmarshal(raw, &a); err != nil {
			return authn.AuthConfig{}, fmt.Errorf("credentials of %s: %w", k, err)
		}
		if filled(a) {
			return a, nil
		}
	}
	return authn.AuthConfig{}, nil
}

// filled is false of entries that only say that a helper knows more.
func filled(a authn.AuthConfig) bool { return a != (authn.AuthConfig{}) }

// hostKeys are the keys that a registry has in config.json; the first is the one
// that Docker writes.
func hostKeys(host string) []string {
	if isHub(host) {
		return []string{hubKey, DockerHub, "index.docker.io", "registry-1.docker.io"}
	}
	return []string{host}
}

func isHub(host string) bool {
	return host == DockerHub || host == "index.docker.io" || host == "registry-1.docker.io"
}

// sameHost reports whether a key of auths stands for host.
func sameHost(key, host string) bool {
	k := keyHost(key)
	return k == host || isHub(k) && isHub(host)
}

// keyHost is the host of a key, which older tools wrote as a URL. A key with a
// path that is not the protocol's is of a repository, not of the host.
func keyHost(key string) string {
	host, path, _ := strings.Cut(trimScheme(key), "/")
	switch strings.Trim(path, "/") {
	case "", "v1", "v2":
		return host
	}
	return key
}

// encodeAuth is the auths entry of Docker's for a name and password.
func encodeAuth(user, password string) json.RawMessage {
	data, _ := json.Marshal(map[string]string{ // strings always can be
		"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password)),
	})
	return data
}
