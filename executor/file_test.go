package executor

import (
	"testing"

	"github.com/861fb494/build/llb"
)

// What is made in a directory with the setgid bit has it too, and its group
// where no owner is asked for.
func TestNewDirectoriesInheritSetgid(t *testing.T) {
	r := newRig(t)
	r.write("f", "1")
	base := llb.New(llb.File{Actions: []llb.Action{llb.Mkdir{Path: "/x", Mode: 0o2770, Owner: "5:6"}}}, scratch)
	made := llb.New(llb.File{Actions: []llb.Action{llb.Mkdir{Path: "/x/a/b", Mode: 0o755, Owner: "7"}}}, base)
	got, _ := r.mustBuild(made)
	r.check("made", got, "/x/ 2770 5:6", "/x/a/ 2755 7:7", "/x/a/b/ 2755 7:7")
	got, _ = r.mustBuild(copyOf(base, llb.Copy{Sources: []string{"/f"}, Dest: "/x/c/d/", Mode: "0700"}))
	r.check("for a copy", got, "/x/ 2770 5:6", "/x/c/ 2700 0:6", "/x/c/d/ 2700 0:6", "/x/c/d/f 0700 0:0 1")
}

// A working directory that is missing is made, for the step's user.
func TestMissingWorkingDirectory(t *testing.T) {
	r := newRig(t)
	step := llb.New(llb.Exec{Args: []string{"x"}, Network: llb.NetworkHost, Dir: "/a/b", User: "7:8"}, filesOf(scratch, "/a/"))
	got, _ := r.mustBuild(step)
	r.check("missing", got, "/a/ 0755 0:0", "/a/b/ 0755 7:8")
	step = llb.New(llb.Exec{Args: []string{"y"}, Network: llb.NetworkHost, Dir: "/a", User: "7:8"}, filesOf(scratch, "/a/"))
	got, _ = r.mustBuild(step)
	r.check("there", got, "/a/ 0755 0:0")
}
