package layer

import (
	"errors"
	"iter"
	"strings"

	"github.com/861fb494/build/cache/tree"
)

// ErrLowerLink is the error of an Apply that needs the lower layers and has
// them not: for the target of a hard link, or for a parent directory that the
// tar does not list. The caller may start again with the lower layers in the
// tree, and ApplyOptions.Complete.
var ErrLowerLink = errors.New("the lower layers are needed")

const (
	whiteout    = ".wh."          // prefix: the rest of the name is gone
	whiteoutOwn = ".wh..wh."      // prefix of AUFS's own files
	opaque      = ".wh..wh..opq"  // the directory that this is in is opaque
	schilyXattr = "SCHILY.xattr." // prefix of PAX records with xattrs
)

// All is changes as a sequence.
func All(changes []tree.Change) iter.Seq2[tree.Change, error] {
	return func(yield func(tree.Change, error) bool) {
		for _, c := range changes {
			if !yield(c, nil) {
				return
			}
		}
	}
}

// Collect is the changes of a sequence, or its first error.
func Collect(seq iter.Seq2[tree.Change, error]) ([]tree.Change, error) {
	var out []tree.Change
	for c, err := range seq {
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// Portable reports whether an extended attribute belongs to a file wherever it
// is. Overlayfs's own do not, nor the labels and measurements that the host's
// security modules put on every file.
func Portable(xattr string) bool {
	for _, p := range []string{"trusted.overlay.", "user.overlay."} {
		if strings.HasPrefix(xattr, p) {
			return false
		}
	}
	switch xattr {
	case "security.selinux", "security.apparmor", "security.ima", "security.evm", "security.SMACK64":
		return false
	}
	return true
}

// portable leaves in m what is Portable.
func portable(m map[string]string) map[string]string {
	all := true
	for k := range m {
		all = all && Portable(k)
	}
	if all {
		return m
	}
	var out map[string]string
	for k, v := range m {
		if Portable(k) {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}
