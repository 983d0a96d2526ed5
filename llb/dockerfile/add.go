package dockerfile

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/llb"
)

func isHTTP(src string) bool {
	return strings.HasPrefix(src, "http://") || strings.HasPrefix(src, "https://")
}

func isGit(src string) bool {
	_, ok, err := parseGit(src)
	return ok && err == nil
}

// addGit adds the content of a git repository to an ADD.
func (x *step) addGit(t *transfer, g gitRef) error {
	if !t.add {
		return errors.New("source can't be a git ref for COPY")
	}
	if t.keepGit != nil && g.keepDir != nil && *t.keepGit != *g.keepDir {
		return errors.New("inconsistent keep-git-dir configuration")
	}
	if g.keepDir == nil {
		g.keepDir = t.keepGit
	}
	if t.checksum != "" && g.Checksum != "" && t.checksum != g.Checksum {
		return fmt.Errorf("checksum mismatch %q != %q", t.checksum, g.Checksum)
	}
	if t.checksum != "" {
		g.Checksum = t.checksum
	}
	n := x.node(g.source(), llb.Meta{Name: "[internal] fetch " + g.remote})
	t.actions = append(t.actions, t.action(t.input(n), "/"))
	return nil
}

// urlName is what the file at a URL is called.
func urlName(src string) string {
	if u, err := url.Parse(src); err == nil {
		if base := path.Base(u.Path); base != "." && base != "/" && base != ".." {
			return base
		}
	}
	return "__unnamed__"
}

// addURL adds the file at a URL to an ADD. It is unpacked only where --unpack
// says so.
func (x *step) addURL(t *transfer, src string) error {
	if !t.add {
		return errors.New("source can't be a URL for COPY")
	}
	name := urlName(src)
	op := llb.Source{Scheme: llb.HTTP, Ref: src, Filename: name}
	if t.checksum != "" {
		sum, err := digest.Parse(t.checksum)
		if err != nil {
			return fmt.Errorf("--checksum=%s: %w", t.checksum, err)
		}
		op.Checksum = sum
	}
	n := x.node(op, llb.Meta{Name: "[internal] download " + src})
	a := t.action(t.input(n), "/"+name)
	a.Unpack = t.unpack != nil && *t.unpack
	t.actions = append(t.actions, a)
	return nil
}
