package sandbox_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/861fb494/build/executor/sandbox"
)

// TestSeccompAsRunc makes all system calls in both sandboxes: ours is to refuse
// the same ones, in the same way, as runc and libseccomp do by the same profile.
func TestSeccompAsRunc(t *testing.T) {
	need(t, "busybox", "runc", "go")
	checkNothingLeft(t)
	native, runc := sandbox.NewNative(sandbox.NativeOptions{}), sandbox.NewOCI("runc", t.TempDir())
	for _, what := range []string{"numbers", "arguments"} {
		for _, user := range []uint32{0, 1000} {
			t.Run(fmt.Sprintf("%s user %d", what, user), func(t *testing.T) {
				var out [2][]string
				for i, sb := range []sandbox.Sandbox{native, runc} {
					s := newSpec(t, "")
					s.Args = []string{"probe", what}
					s.User.UID = user
					text, _, err := run(t, sb, s)
					if err != nil {
						t.Fatalf("probe: %v: %s", err, text)
					}
					out[i] = strings.Split(strings.TrimSpace(text), "\n")
				}
				if len(out[0]) < 20 || len(out[0]) != len(out[1]) {
					t.Fatalf("%d answers in the native sandbox, %d under runc", len(out[0]), len(out[1]))
				}
				for i, ours := range out[0] {
					if theirs := out[1][i]; ours != theirs && !newerThanRunc(ours) {
						t.Errorf("native sandbox %q, runc %q", ours, theirs)
					}
				}
			})
		}
	}
}

// newerThanRunc says whether a line is about a call that the profile names and
// an older libseccomp, as runc is linked with, does not know by name.
func newerThanRunc(line string) bool {
	number, _, _ := strings.Cut(line, " ")
	return slices.Contains([]string{
		"451", "452", "453", // cachestat, fchmodat2, map_shadow_stack
		"454", "455", "456", // futex_wake, futex_wait, futex_requeue
		"457", "458", "459", "460", "461", // statmount, listmount, lsm_get_self_attr, lsm_set_self_attr, lsm_list_modules
		"462",                      // mseal
		"463", "464", "465", "466", // setxattrat, getxattrat, listxattrat, removexattrat
	}, number)
}
