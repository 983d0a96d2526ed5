package main

import (
	"os"
	"path/filepath"
	"strconv"
)

// alone is no builder: it does what a workload's steps do, on the machine itself.
// In the same rounds it tells what of a builder's time is the work's.
func (b *bench) alone() builder {
	top := filepath.Join(b.dir, "state", "alone")
	return builder{name: "alone", title: "the work alone, no builder", version: "programs of this machine", state: top, own: true, argv: func(j job) [][]string {
		if j.alone == nil {
			return nil
		}
		return [][]string{j.alone(j.context, filepath.Join(top, strconv.Itoa(b.runs)))}
	}}
}

// copyCommand is the first argument of this program where it is to copy a tree
// and nothing else.
const copyCommand = "copy-tree"

// copyAlone is how files get from one directory to another in the least time.
func copyAlone(context, dest string) []string {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	return []string{self, copyCommand, context, dest}
}

// inCopy is a shell command in a copy of the context, with a directory for caches as
// "$caches".
func inCopy(command string) func(context, dest string) []string {
	return func(context, dest string) []string {
		return []string{"sh", "-ec", `caches=$2; mkdir -p "$2/app"; cp -r "$1/." "$2/app"; cd "$2/app"; ` + command, "sh", context, dest}
	}
}
