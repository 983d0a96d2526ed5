package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Config says how registries are reached. Its form in a file is the registry
// tables of buildkitd.toml
// (https://github.com/moby/buildkit/blob/master/docs/buildkitd.toml.md):
//
//	[registry."docker.io"]
//	  mirrors = ["127.0.0.1:5001", "harbor.example/proxy.docker.io"]
//	[registry."registry.example:5000"]
//	  http = true
//	  ca = ["/etc/ssl/registry.pem"]
type Config struct {
	Registries map[string]Registry // by domain: "docker.io", "localhost:5000"
}

// Registry says how one registry or mirror is reached.
type Registry struct {
	// Mirrors are asked before the registry, in order: "HOST[:PORT][/PATH]",
	// PATH being put in front of repositories' names. "http://" in front is
	// the same as HTTP in the mirror's own table.
	Mirrors []string `toml:"mirrors"`
	// HTTP asks for plain HTTP. nil: only where Insecure says so.
	HTTP *bool `toml:"http"`
	// Insecure takes any certificate; together with HTTP it tries HTTPS first.
	// A registry on a loopback address of which neither this nor HTTP nor a
	// certificate is said may have any certificate, or plain HTTP, as with Docker.
	Insecure *bool `toml:"insecure"`
	// CA are files of certificate authorities to trust besides the system's.
	CA []string `toml:"ca"`
	// KeyPairs are certificates that the client shows.
	KeyPairs []KeyPair `toml:"keypair"`
	// CertDirs hold *.crt, *.cert and *.key files with the meaning of CA and
	// KeyPairs.
	CertDirs []string `toml:"tlsconfigdir"`
}

// KeyPair is files in PEM.
type KeyPair struct {
	Key  string `toml:"key"`
	Cert string `toml:"cert"`
}

// LoadConfig reads the file path; or, where path is empty, the system's and the
// user's file if they are there: /etc/build/config.toml and then build/config.toml
// in $XDG_CONFIG_HOME, whose tables replace those of the system's.
func LoadConfig(path string) (Config, error) {
	paths := []string{path}
	if path == "" {
		paths = []string{"/etc/build/config.toml"}
		if dir, err := os.UserConfigDir(); err == nil {
			paths = append(paths, filepath.Join(dir, "build", "config.toml"))
		}
	}
	var c Config
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) && path == "" {
			continue
		}
		if err != nil {
			return Config{}, fmt.Errorf("read configuration: %w", err)
		}
		next, err := ParseConfig(p, data)
		if err != nil {
			return Config{}, err
		}
		c = c.merge(next)
	}
	return c, nil
}

// ParseConfig reads a configuration file; name is for errors. Tables other than
// registry are not this package's and are passed over.
func ParseConfig(name string, data []byte) (Config, error) {
	var file struct {
		Registry map[string]Registry `toml:"registry"`
	}
	d := toml.NewDecoder(strings.NewReader(string(data))).DisallowUnknownFields()
	err := d.Decode(&file)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		for _, e := range unknown.Errors {
			if key := e.Key(); len(key) > 2 && key[0] == "registry" {
				line, _ := e.Position()
				return Config{}, fmt.Errorf("%s:%d: registry %q has no setting %q", name, line, key[1], strings.Join(key[2:], "."))
			}
		}
	case errors.As(err, &bad):
		line, _ := bad.Position()
		return Config{}, fmt.Errorf("%s:%d: %s", name, line, strings.TrimPrefix(bad.Error(), "toml: "))
	case err != nil:
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	c := Config{Registries: map[string]Registry{}}
	for domain, r := range file.Registry {
		if err := c.add(domain, r); err != nil {
			return Config{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return c, nil
}

// add puts r into c under domain, after a check of its mirrors.
func (c *Config) add(domain string, r Registry) error {
	if err := checkHost(domain); err != nil {
		return err
	}
	for _, m := range r.Mirrors {
		host, _, _ := strings.Cut(trimScheme(m), "/")
		if err := checkHost(host); err != nil {
			return fmt.Errorf("mirror %q of %s: %w", m, domain, err)
		}
		if strings.HasPrefix(m, "http://") {
			c.set(host, func(r *Registry) { r.HTTP = new(true) })
		}
	}
	c.set(domain, func(have *Registry) {
		// A mirror's "http://" may have come before the mirror's own table.
		if r.HTTP == nil {
			r.HTTP = have.HTTP
		}
		*have = r
	})
	return nil
}

func (c *Config) set(domain string, change func(*Registry)) {
	r := c.Registries[domain]
	change(&r)
	if c.Registries == nil {
		c.Registries = map[string]Registry{}
	}
	c.Registries[domain] = r
}

// merge is c with the tables of over in place of its own.
func (c Config) merge(over Config) Config {
	all := maps.Clone(c.Registries)
	if all == nil {
		all = map[string]Registry{}
	}
	maps.Copy(all, over.Registries)
	return Config{Registries: all}
}

// WithMirror is c with a mirror put before all others, in the form of the flag
// --registry-mirror: "docker.io=127.0.0.1:5001". Without "=" it is docker.io's.
func (c Config) WithMirror(flag string) (Config, error) {
	domain, mirror, ok := strings.Cut(flag, "=")
	if !ok {
		domain, mirror = DockerHub, flag
	}
	c = c.merge(Config{})
	r := c.Registries[domain]
	r.Mirrors = append([]string{mirror}, r.Mirrors...)
	if err := c.add(domain, r); err != nil {
		return Config{}, fmt.Errorf("registry mirror %q: %w", flag, err)
	}
	return c, nil
}

// WithInsecure is c with a registry that may have any certificate, or none and
// plain HTTP, as Docker's --insecure-registry means it.
func (c Config) WithInsecure(domain string) (Config, error) {
	domain = strings.TrimSuffix(trimScheme(domain), "/")
	if err := checkHost(domain); err != nil {
		return Config{}, fmt.Errorf("insecure registry: %w", err)
	}
	c = c.merge(Config{})
	c.set(domain, func(r *Registry) { r.HTTP, r.Insecure = new(true), new(true) })
	return c, nil
}

func checkHost(s string) error {
	if s == "" || strings.ContainsAny(s, "/@?# \t\n") {
		return fmt.Errorf("%q is not HOST or HOST:PORT", s)
	}
	return nil
}

// ParseHost is the registry that a user names on a command line: "HOST",
// "HOST:PORT", or an URL of either. Empty is Docker Hub, whose other names
// become "docker.io".
func ParseHost(s string) (string, error) {
	if s == "" {
		return DockerHub, nil
	}
	host := keyHost(strings.TrimSuffix(s, "/"))
	if err := checkHost(host); err != nil {
		return "", fmt.Errorf("registry %w", err)
	}
	if isHub(host) {
		return DockerHub, nil
	}
	return host, nil
}
