package main

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/861fb494/build/internal/testbase/house"
)

// beforeKey is where setup leaves the things that were there before a script.
type beforeKey struct{}

// noleft fails if there is more than before the script. What is being removed
// at this moment is given time.
func noleft(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: noleft")
	}
	before, _ := ts.Value(beforeKey{}).(house.Things)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		root := ts.Getenv("BUILD_ROOT")
		now, err := house.Look(root, ts.Getenv("TMPDIR"), filepath.Join(root, "tmp"), filepath.Join(root, "images", "ingest"))
		ts.Check(err)
		maps.DeleteFunc(now, func(thing string, _ bool) bool { return before[thing] })
		if len(now) == 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("left behind:\n\t%s", strings.Join(slices.Sorted(maps.Keys(now)), "\n\t"))
		}
	}
}

// hasgroup fails if there is no control group for the state directory, which
// noleft would not notice if it looked in the wrong place.
func hasgroup(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: hasgroup")
	}
	found, err := house.Groups(ts.Getenv("BUILD_ROOT"))
	ts.Check(err)
	if len(found) == 0 {
		ts.Fatalf("the running step has no control group")
	}
}
