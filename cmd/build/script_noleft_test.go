package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// things are what a machine has that a command may forget to remove, each by a
// line that says what it is.
type things map[string]bool

// beforeKey is where setup leaves the things that were there before a script.
type beforeKey struct{}

// noleft fails if there is more than before the script. What is being removed
// at this moment is given time.
func noleft(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: noleft")
	}
	before, _ := ts.Value(beforeKey{}).(things)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		root := ts.Getenv("BUILD_ROOT")
		now, err := look(ts.Getenv("TMPDIR"), filepath.Join(root, "tmp"), filepath.Join(root, "images", "ingest"))
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

// look lists what is there now, and in dirs. Mounts, devices, tables and
// processes are those of the tests' namespaces.
func look(dirs ...string) (things, error) {
	all := things{}
	for _, find := range []func(things) error{
		findMounts,
		findProcesses,
		findCgroups,
		findNetwork,
		func(t things) error { return findFiles(t, dirs) },
	} {
		if err := find(all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func findMounts(t things) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 {
			t["mount "+f[4]] = true
		}
	}
	return nil
}

// findProcesses leaves out zombies, whose parent is at work on them, and the
// test itself with what it waits for.
func findProcesses(t things) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // ended meanwhile
		}
		after := stat[bytes.LastIndexByte(stat, ')')+1:]
		if f := bytes.Fields(after); len(f) == 0 || string(f[0]) == "Z" || string(f[0]) == "X" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		command, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(command) == 0 {
			continue // ended, or a thread of the kernel
		}
		t[fmt.Sprintf("process %d: %s", pid, bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '}))] = true
	}
	return nil
}

// findCgroups lists the empty ones below "build": others are somebody's, or
// belong to a process that findProcesses has.
func findCgroups(t things) error {
	for _, pattern := range []string{"/sys/fs/cgroup/build", "/sys/fs/cgroup/*/build"} {
		tops, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, top := range tops {
			err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.IsDir() || path == top {
					return nil // removed meanwhile
				}
				if procs, err := os.ReadFile(path + "/cgroup.procs"); err == nil && len(procs) == 0 {
					t["cgroup "+path] = true
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func findNetwork(t things) error {
	devices, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, d := range devices {
		t["network device "+d.Name] = true
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return nil
	}
	tables, err := exec.Command("nft", "list", "tables").CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft list tables: %w: %s", err, tables)
	}
	for line := range strings.Lines(string(tables)) {
		t["firewall "+strings.TrimSpace(line)] = true
	}
	return nil
}

func findFiles(t things, dirs []string) error {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			t["temporary file "+filepath.Join(dir, e.Name())] = true
		}
	}
	return nil
}
