package remote

import (
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/registry"
)

// Types of places.
const (
	TypeRegistry = "registry"
	TypeLocal    = "local"
	TypeInline   = "inline"
	TypeS3       = "s3"
	TypeGHA      = "gha"
)

// Spec is a place as a user writes it: type=TYPE[,NAME=VALUE…].
type Spec struct {
	Type  string
	Attrs map[string]string
}

// Env is what places are reached with.
type Env struct {
	Registry func() (*registry.Client, error)
	Getenv   func(string) string
}

// known are the attributes of each type: of both directions, of imports, of
// exports.
var known = map[string][3]string{
	TypeRegistry: {"ref", "", "image-manifest oci-mediatypes"},
	TypeLocal:    {"tag", "src digest", "dest image-manifest oci-mediatypes"},
	TypeInline:   {"", "", ""},
	TypeS3:       {"endpoint_url region bucket prefix name access_key_id secret_access_key session_token use_path_style", "", ""},
	TypeGHA:      {"scope url_v2 token timeout version", "", ""},
}

// exports are attributes of every export but an inline one, imports those of every
// import.
const (
	exports = "mode compression compression-level force-compression ignore-error parts " + imports
	imports = "mounts mounts-max-size"
)

// Check finds mistakes in what a user wrote, without asking anybody.
func (s Spec) Check(export bool) error {
	names, ok := known[s.Type]
	if !ok || s.Type == TypeInline && !export {
		types := slices.Sorted(maps.Keys(known))
		if !export {
			types = slices.DeleteFunc(types, func(t string) bool { return t == TypeInline })
		}
		if s.Type == TypeInline {
			return fmt.Errorf("type inline: such a cache is in an image; import it with type=registry,ref=IMAGE")
		}
		return fmt.Errorf("type %q is not known; want one of %s", s.Type, strings.Join(types, ", "))
	}
	if _, ok := s.Attrs["mounts"]; ok && s.Type == TypeInline {
		return fmt.Errorf("type inline: an image cannot hold cache mounts; export them to a cache of another type")
	}
	good := names[0] + " " + names[1] + " " + imports
	if export {
		good = names[0] + " " + names[2]
		if s.Type != TypeInline {
			good += " " + exports
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Attrs)) {
		if !slices.Contains(strings.Fields(good), name) {
			if strings.TrimSpace(good) == "" {
				return fmt.Errorf("type %s has no %q, nor anything else to be set", s.Type, name)
			}
			return fmt.Errorf("type %s has no %q; it has %s", s.Type, name, strings.Join(strings.Fields(good), ", "))
		}
	}
	if mode := s.Attrs["mode"]; mode != "" && mode != "min" && mode != "max" {
		return fmt.Errorf("mode %q: want min or max", mode)
	}
	for _, name := range []string{"ignore-error", "parts", "image-manifest", "oci-mediatypes", "force-compression", "use_path_style"} {
		if v, ok := s.Attrs[name]; ok {
			if b, err := strconv.ParseBool(v); err != nil {
				return fmt.Errorf("%s %q: want true or false", name, v)
			} else if !b && (name == "image-manifest" || name == "oci-mediatypes") {
				return fmt.Errorf("%s=false: a cache is an OCI image manifest, always", name)
			}
		}
	}
	if _, err := s.Method(); err != nil {
		return err
	}
	if _, err := s.Mounts(export); err != nil {
		return err
	}
	if s.Type == TypeInline {
		return nil
	}
	_, err := s.place(export, Env{Getenv: func(string) string { return "" }}, true)
	return err
}

// Max reports mode=max: the records of all steps, not only of those whose layers
// are the image's.
func (s Spec) Max() bool { return s.Attrs["mode"] == "max" }

// Flag is the value of a switch.
func (s Spec) Flag(name string, unset bool) bool {
	v, ok := s.Attrs[name]
	if !ok {
		return unset
	}
	b, err := strconv.ParseBool(v)
	return err == nil && b
}

// MountChoice says which cache mounts a cache is to have, or to give.
type MountChoice struct {
	All   bool
	IDs   []string
	Limit int64 // bytes of content that a mount may have
}

// Wants reports whether the mount that a Dockerfile calls id is among them.
func (m MountChoice) Wants(id string) bool { return m.All || slices.Contains(m.IDs, id) }

// Any reports whether there may be some.
func (m MountChoice) Any() bool { return m.All || len(m.IDs) > 0 }

// defaultMount is the limit of a mount's content, in bytes.
const defaultMount = 2 << 30

// Mounts are those that s says: mounts=true, false, or ID[;ID…]; and
// mounts-max-size. An import takes all that there are, an export none, unless s
// says otherwise.
func (s Spec) Mounts(export bool) (MountChoice, error) {
	m := MountChoice{All: !export, Limit: defaultMount}
	switch v, ok := s.Attrs["mounts"]; {
	case !ok:
	case v == "true" || v == "false":
		m.All = v == "true"
	default:
		m.All, m.IDs = false, strings.Split(v, ";")
		if slices.Contains(m.IDs, "") {
			return m, fmt.Errorf("mounts %q: want true, false, or ids of cache mounts with semicolons between them", v)
		}
	}
	if v, ok := s.Attrs["mounts-max-size"]; ok {
		n, err := units.RAMInBytes(v)
		if err != nil || n <= 0 {
			return m, fmt.Errorf("mounts-max-size %q: want a size, such as 500MB or 4GB", v)
		}
		m.Limit = n
	}
	return m, nil
}

// Method is how layers are compressed.
func (s Spec) Method() (compress.Method, error) {
	var level *int
	if v, ok := s.Attrs["compression-level"]; ok {
		n, err := strconv.Atoi(v)
		if err != nil {
			return compress.Method{}, fmt.Errorf("compression-level %q: want a number", v)
		}
		level = &n
	}
	return compress.Parse(s.Attrs["compression"], level)
}

// Place is where s says. Nobody is asked yet.
func (s Spec) Place(export bool, env Env) (Place, error) { return s.place(export, env, false) }

// place makes the place; dry only looks for mistakes, and does not miss what the
// environment has.
func (s Spec) place(export bool, env Env, dry bool) (Place, error) {
	switch s.Type {
	case TypeRegistry:
		ref, err := oci.ParseReference(s.Attrs["ref"])
		if s.Attrs["ref"] == "" {
			return nil, fmt.Errorf("type registry: no ref; add ref=NAME")
		}
		if err != nil {
			return nil, err
		}
		if export && ref.Digest != "" {
			return nil, fmt.Errorf("ref %q: a cache cannot be given a digest as its name", s.Attrs["ref"])
		}
		return &inRegistry{client: env.Registry, ref: ref}, nil
	case TypeLocal:
		name := "src"
		if export {
			name = "dest"
		}
		if s.Attrs[name] == "" {
			return nil, fmt.Errorf("type local: no directory; add %s=PATH", name)
		}
		dir, err := filepath.Abs(s.Attrs[name])
		if err != nil {
			return nil, err
		}
		l := &inLayout{dir: dir, tag: s.Attrs["tag"], digest: oci.Digest(s.Attrs["digest"])}
		if l.tag == "" {
			l.tag = "latest"
		}
		if l.digest != "" && !isDigest(l.digest, "sha256") {
			return nil, fmt.Errorf("digest %.80q: want sha256: and 64 hexadecimal digits", l.digest)
		}
		return l, nil
	case TypeS3:
		return s.newBucket(env, dry)
	case TypeGHA:
		return s.newActions(env)
	}
	return nil, fmt.Errorf("type %q is not known", s.Type)
}

// At is the place that an imported layer's origin names, other than a registry:
// its blobs can be had from there.
func At(origin string, env Env) (Place, error) {
	u, err := url.Parse(origin)
	if err != nil {
		return nil, err
	}
	kind, ok := strings.CutPrefix(u.Scheme, "cache+")
	if !ok {
		return nil, fmt.Errorf("origin %q is not a cache's", origin)
	}
	s := Spec{Type: kind, Attrs: map[string]string{}}
	for name, values := range u.Query() {
		s.Attrs[name] = values[0]
	}
	if kind == TypeLocal {
		s.Attrs["src"] = u.Path
	}
	if kind == TypeS3 {
		s.Attrs["bucket"] = u.Host
	}
	return s.place(false, env, false)
}
