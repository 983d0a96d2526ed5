package tree

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links are followed in one path.
const maxLinks = 255

// Follow is Tree.ResolveIn for any tree: link says whether the path at, whose
// directory is resolved, is a symbolic link, and where to. A path that is not
// there is none. The errors are link's, and unix.ELOOP.
func Follow(base, p string, last bool, link func(at string) (to string, is bool, err error)) (string, error) {
	done, rest := base, strings.Trim(p, "/")
	for links := 0; rest != ""; {
		name, tail, _ := strings.Cut(rest, "/")
		rest = tail
		if name == ".." {
			if done != base {
				done = path.Dir(done)
			}
			continue
		}
		if name == "" || name == "." {
			continue
		}
		at := path.Join(done, name)
		if rest == "" && !last {
			return at, nil
		}
		to, is, err := link(at)
		if err != nil {
			return "", err
		}
		if !is {
			done = at
			continue
		}
		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		if strings.HasPrefix(to, "/") {
			done = base
		}
		// A trailing slash of the target means nothing more here: what is no
		// directory fails where it is used.
		rest = strings.TrimSuffix(strings.Trim(to, "/")+"/"+rest, "/")
	}
	return done, nil
}
