package parser

import (
	"fmt"
	"strings"

	"github.com/861fb494/build/internal/oci"
)

// Frontend says whether the front end that a file asks for ("# syntax=REF") is
// the one built in: docker/dockerfile and docker/dockerfile-upstream, of any
// version and out of any registry, since mirrors carry them under their name;
// or dockerfile.v0, BuildKit's word for its own.
func Frontend(ref string) error {
	if ref == "dockerfile.v0" {
		return nil
	}
	r, err := oci.ParseReference(ref)
	if err == nil {
		for _, ours := range []string{"docker/dockerfile", "docker/dockerfile-upstream"} {
			if r.Path == ours || strings.HasSuffix(r.Path, "/"+ours) {
				return nil
			}
		}
	}
	return fmt.Errorf("the front end %q is not supported: the Dockerfile language (docker/dockerfile) is built in, and no other is run", ref)
}
