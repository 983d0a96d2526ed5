package dockerfile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/platforms"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// mainContext is the name of the build's own context.
const mainContext = "context"

// namedContext is the value of the context that stands in for name, a stage or
// an image, on p; empty if there is none.
func (l *lowering) namedContext(name string, p *oci.Platform) (string, error) {
	if strings.EqualFold(name, scratch) || strings.EqualFold(name, mainContext) {
		return "", nil
	}
	name, err := contextName(name)
	if err != nil {
		return "", err
	}
	if p == nil {
		p = &l.platform
	}
	full := name + "::" + platforms.FormatAll(normalize(*p))
	var found string
	for given, value := range l.opts.Contexts {
		base, platform, ok := strings.Cut(given, "::")
		if base, err = contextName(base); err != nil {
			continue // a name that nothing can have
		}
		if ok {
			base += "::" + platform
		}
		switch base {
		case full:
			return value, nil
		case name:
			found = value
		}
	}
	return found, nil
}

// contextName is the name as images are familiarly called, without ":latest".
func contextName(name string) (string, error) {
	named, err := oci.ParseReference(name)
	if err != nil {
		return "", fmt.Errorf("name of a context: %w", err)
	}
	return strings.TrimSuffix(named.Familiar(), ":latest"), nil
}

// load is what a named context holds.
func (l *lowering) load(ctx context.Context, mu *sync.Mutex, name, value string, p oci.Platform) resolution {
	label := "[context " + name + "] "
	scheme, rest, _ := strings.Cut(value, ":")
	rest = strings.TrimPrefix(rest, "//")
	switch strings.ToLower(scheme) {
	case "docker-image":
		if rest == scratch {
			return resolution{source: llb.Source{Scheme: llb.Scratch}}
		}
		named, err := oci.ParseReference(rest)
		if err != nil {
			return resolution{err: err}
		}
		return l.image(ctx, mu, named.String(), p)
	case "oci-layout":
		return l.image(ctx, mu, "oci-layout://"+rest, p)
	case "target":
		t, ok := l.byName[strings.ToLower(rest)]
		if !ok {
			return resolution{err: l.noTarget(rest)}
		}
		return resolution{base: t}
	}
	if src, ok, err := gitSource(value); ok {
		return resolution{source: src, name: label + value, err: err}
	}
	if strings.HasPrefix(value, "http://") || strings.HasPrefix(value, "https://") {
		src := llb.Source{Scheme: llb.HTTP, Ref: value, Filename: "context"}
		return resolution{source: src, name: label + value, unpack: true}
	}
	return resolution{source: llb.Source{Scheme: llb.Local, Ref: l.contextKey(name, p)}}
}

// contextKey is how Options.Contexts writes the context of that name.
func (l *lowering) contextKey(name string, p oci.Platform) string {
	want, err := contextName(name)
	if err != nil {
		return name
	}
	keys := make([]string, 0, 2)
	for given := range l.opts.Contexts {
		base, platform, ok := strings.Cut(given, "::")
		if base, err = contextName(base); err != nil || base != want {
			continue
		}
		if ok && platform == platforms.FormatAll(normalize(p)) {
			return given
		}
		if !ok {
			keys = append(keys, given)
		}
	}
	slices.Sort(keys)
	if len(keys) > 0 {
		return keys[0]
	}
	return name
}
