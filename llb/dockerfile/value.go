package dockerfile

import (
	"strings"

	"github.com/861fb494/build/llb"
)

// GitSource reads s as the URL of a git repository; ok is false if it is none.
func GitSource(s string) (src llb.Source, ok bool, err error) { return gitSource(s) }

// IsDirectory reports whether the value of a named context is the path of a
// directory, and not an image, a stage or a URL: see Options.Contexts.
func IsDirectory(value string) bool {
	if _, ok, _ := gitSource(value); ok {
		return false
	}
	scheme, _, _ := strings.Cut(value, ":")
	switch strings.ToLower(scheme) {
	case "docker-image", "oci-layout", "target":
		return false
	}
	return !strings.HasPrefix(value, "http://") && !strings.HasPrefix(value, "https://")
}
