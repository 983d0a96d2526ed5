package house

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"
)

// Things are what a machine has that a command may forget to remove, each by a
// line that says what it is.
type Things map[string]bool

// Look lists what is there now: mounts, devices, tables and processes in the
// tests' namespaces, control groups of the state directory root, files in dirs.
func Look(root string, dirs ...string) (Things, error) {
	all := Things{}
	for _, find := range []func(Things) error{
		findMounts,
		findProcesses,
		findNetwork,
		func(t Things) error { return findFiles(t, dirs) },
		func(t Things) error {
			found, err := Groups(root)
			for _, g := range found {
				t["control group "+g] = true
			}
			return err
		},
	} {
		if err := find(all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func findMounts(t Things) error {
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
func findProcesses(t Things) error {
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

// Groups are the control groups of the state directory root, in whatever
// hierarchies there are. They go with the last step in them.
func Groups(root string) ([]string, error) {
	sum := blake3.Sum256([]byte(root))
	name := "build-" + hex.EncodeToString(sum[:4]) // cache.Store.Group
	one, err := filepath.Glob("/sys/fs/cgroup/" + name)
	if err != nil {
		return nil, err
	}
	many, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	return append(one, many...), err
}

func findNetwork(t Things) error {
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

func findFiles(t Things, dirs []string) error {
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
