package dockerfile

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/861fb494/build/llb"
)

// gitRef is a git URL of ADD or of a context: a remote, and what to check out
// by "#ref:dir" or by a query.
// Format: https://docs.docker.com/build/concepts/context/#git-repositories.
type gitRef struct {
	llb.GitOptions
	remote  string
	keepDir *bool
}

// gitSource reads s as a git URL. ok is false if it is none: a path, or the URL
// of something else.
func gitSource(s string) (src llb.Source, ok bool, err error) {
	g, ok, err := parseGit(s)
	return g.source(), ok, err
}

func (g gitRef) source() llb.Source {
	o := g.GitOptions
	o.KeepDir = g.keepDir != nil && *g.keepDir
	return llb.Source{Scheme: llb.Git, Ref: g.remote, Git: o}
}

func parseGit(s string) (g gitRef, ok bool, err error) {
	var query url.Values
	var fragment string
	if scheme, _, found := strings.Cut(s, "://"); found {
		u, err := url.Parse(s)
		if err != nil {
			return g, false, nil
		}
		switch strings.ToLower(scheme) {
		case "http", "https":
			if !strings.HasSuffix(u.Path, ".git") {
				return g, false, nil
			}
		case "git", "ssh":
		default:
			return g, false, nil
		}
		query, fragment = u.Query(), u.Fragment
		u.RawQuery, u.Fragment = "", ""
		g.remote = u.String()
	} else if g.remote, query, fragment, ok = parseSCP(s); !ok {
		return g, false, nil
	}
	g.Ref, g.Subdir, _ = strings.Cut(fragment, ":")
	g.Subdir = strings.TrimPrefix(path.Join("/", g.Subdir), "/")
	return g, true, g.apply(query)
}

// parseSCP reads "user@host:path".
func parseSCP(s string) (remote string, query url.Values, fragment string, ok bool) {
	s, fragment, _ = strings.Cut(s, "#")
	remote, raw, hasQuery := strings.Cut(s, "?")
	user, rest, hasUser := strings.Cut(remote, "@")
	host, _, hasPath := strings.Cut(rest, ":")
	if !hasUser || !hasPath || !isWord(user, "-_") || !isWord(host, "-.") {
		return "", nil, "", false
	}
	if hasQuery {
		var err error
		if query, err = url.ParseQuery(raw); err != nil {
			return "", nil, "", false
		}
	}
	return remote, query, fragment, true
}

// isWord reports whether s is not empty and of ASCII letters, digits and more.
func isWord(s, more string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte(more, c) < 0 {
			return false
		}
	}
	return s != ""
}

// apply reads the query: ref, tag, branch, subdir, checksum, keep-git-dir, submodules.
func (g *gitRef) apply(query url.Values) error {
	var tag, branch string
	for k, vs := range query {
		v := ""
		if len(vs) > 0 {
			v = vs[0]
		}
		if len(vs) > 1 {
			return fmt.Errorf("query %q has multiple values", k)
		}
		flag := k == "submodules" || k == "keep-git-dir" || k == "fetch-by-commit"
		if v == "" && !flag {
			return fmt.Errorf("query %q has no value", k)
		}
		on := true
		if flag && v != "" {
			var err error
			if on, err = strconv.ParseBool(v); err != nil {
				return fmt.Errorf("invalid %s value: %q", k, v)
			}
		}
		switch k {
		case "ref":
			if err := set(&g.Ref, v, "ref"); err != nil {
				return err
			}
		case "subdir":
			if err := set(&g.Subdir, v, "subdir"); err != nil {
				return err
			}
		case "tag":
			tag = "refs/tags/" + strings.TrimPrefix(v, "refs/tags/")
		case "branch":
			branch = "refs/heads/" + strings.TrimPrefix(v, "refs/heads/")
		case "checksum", "commit":
			g.Checksum = v
		case "keep-git-dir":
			g.keepDir = &on
		case "submodules":
			g.SkipSubmodules = !on
		case "mtime":
			if v != "checkout" && v != "commit" {
				return fmt.Errorf("invalid mtime value: %q (must be \"checkout\" or \"commit\")", v)
			}
		case "fetch-by-commit": // how it is fetched is not for the user to say here
		default:
			return fmt.Errorf("unexpected query %q", k)
		}
	}
	if tag != "" && branch != "" {
		return errors.New("branch conflicts with tag")
	}
	if ref := tag + branch; ref != "" {
		return set(&g.Ref, ref, "ref")
	}
	return nil
}

func set(field *string, v, name string) error {
	if *field != "" && *field != v {
		return fmt.Errorf("%s conflicts: %q vs %q", name, *field, v)
	}
	*field = v
	return nil
}
