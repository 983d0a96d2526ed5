package main

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// resolve follows the symbolic links of p inside root and gives a path inside
// root, absolute as seen from there. Links cannot lead out; what is not there
// is taken by its name.
func resolve(root, p string, last bool) (string, error) {
	done := "/"
	rest := strings.Split(p, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, name)
		target, err := os.Readlink(filepath.Join(root, next))
		if err != nil || len(rest) == 0 && !last {
			done = next
			continue
		}
		if links++; links > 255 {
			return "", unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			done = "/"
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return done, nil
}

// ignored reads patterns as .dockerignore does: the last one that matches the
// path or a directory above it says. As in BuildKit, a pattern that could not
// change the verdict on a directory does not count for what is in it.
func ignored(patterns []string, p string) bool {
	matched := make([]bool, len(patterns))
	out := false
	for _, q := range append(above(p), p) {
		out = false
		for i, pattern := range patterns {
			pattern, negated := strings.CutPrefix(strings.TrimSpace(pattern), "!")
			pattern = strings.TrimPrefix(path.Clean("/"+pattern), "/")
			if !matched[i] && (negated != out || pattern == "" || !glob(pattern).MatchString(q)) {
				continue
			}
			matched[i] = true
			out = !negated
		}
	}
	return out
}

// glob is a pattern as a regular expression: "*" and "?" do not match slashes,
// "**" does.
func glob(pattern string) *regexp.Regexp {
	var b strings.Builder
	b.WriteString("^")
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case strings.HasPrefix(pattern[i:], "**/"):
			b.WriteString("(.*/)?")
			i += 2
		case strings.HasPrefix(pattern[i:], "**"):
			b.WriteString(".*")
			i++
		case c == '*':
			b.WriteString("[^/]*")
		case c == '?':
			b.WriteString("[^/]")
		case c == '[' || c == ']':
			b.WriteByte(c)
		default:
			b.WriteString(regexp.QuoteMeta(pattern[i : i+1]))
		}
	}
	return regexp.MustCompile(b.String() + "$")
}

func wild(s string) bool { return strings.ContainsAny(s, "*?[") }

// find is what a source names in root: a pattern's matches, which may be none,
// or the path itself, which has to be there.
func find(root, source string) ([]string, error) {
	parts := strings.Split(strings.TrimPrefix(path.Clean("/"+source), "/"), "/")
	fixed := 0
	for fixed < len(parts) && !wild(parts[fixed]) {
		fixed++
	}
	if fixed == len(parts) {
		p, err := resolve(root, source, true)
		if err == nil {
			_, err = os.Lstat(filepath.Join(root, p))
		}
		return []string{path.Clean("/" + source)}, err
	}
	base, err := resolve(root, strings.Join(parts[:fixed], "/"), true)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(root, base)); err != nil {
		return nil, err
	}
	found := []string{base}
	for _, pattern := range parts[fixed:] {
		var next []string
		for _, dir := range found {
			if st, err := os.Lstat(filepath.Join(root, dir)); err != nil || !st.IsDir() {
				continue // symbolic links are not gone through
			}
			entries, err := os.ReadDir(filepath.Join(root, dir))
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				if glob(pattern).MatchString(e.Name()) {
					next = append(next, path.Join(dir, e.Name()))
				}
			}
		}
		found = next
	}
	return found, nil
}

var errNotDir = errors.New("not a directory")

// lstat is the kind of what is at p in root: "" for nothing.
func lstat(root, p string) os.FileMode {
	st, err := os.Lstat(filepath.Join(root, p))
	if err != nil {
		return os.ModeIrregular
	}
	return st.Mode()
}
