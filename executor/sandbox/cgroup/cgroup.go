// Package cgroup makes and removes the control groups of sandboxes, in both
// versions of the kernel's interface (cgroups(7)).
//
// Three layouts occur: version 2 alone; the hybrid one, in which the controllers
// are version 1 and a version 2 hierarchy without controllers is mounted at
// "unified"; and version 1 alone. In version 2 a process is started right inside
// its group, which is cheap, so every sandbox gets one where it can be had. To
// move a process into a version 1 group takes milliseconds: that is done only
// where a limit is to be held.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultRoot is where systems mount the hierarchies.
const DefaultRoot = "/sys/fs/cgroup"

// Limits are what a group holds its processes to. Zero values: no limit.
type Limits struct {
	Memory  int64   // bytes
	CPUs    float64 // time of so many cores
	PIDs    int64
	Devices bool // only the standard devices may be used, and those of Allow; held in version 2 alone
	Allow   []Device
}

// demanded lists the controllers that hold l.
func (l Limits) demanded() []string {
	var c []string
	if l.Memory > 0 {
		c = append(c, "memory")
	}
	if l.CPUs > 0 {
		c = append(c, "cpu")
	}
	if l.PIDs > 0 {
		c = append(c, "pids")
	}
	return c
}

// Tree is the mounted hierarchies. It is safe for concurrent use.
type Tree struct {
	root   string
	detect sync.Once
	pure   bool              // version 2 alone
	v2     string            // mount point of the version 2 hierarchy, or ""
	v1     map[string]string // mount points of version 1 controllers
}

// Open returns the tree mounted at root. What is there is looked at on first
// use.
func Open(root string) *Tree { return &Tree{root: root} }

func (t *Tree) look() {
	t.detect.Do(func() {
		if isType(t.root, unix.CGROUP2_SUPER_MAGIC) {
			t.v2, t.pure = t.root, true
			return
		}
		if dir := filepath.Join(t.root, "unified"); isType(dir, unix.CGROUP2_SUPER_MAGIC) {
			t.v2 = dir
		}
		t.v1 = map[string]string{}
		for _, c := range []string{"memory", "cpu", "pids"} {
			if dir := filepath.Join(t.root, c); isType(dir, unix.CGROUP_SUPER_MAGIC) {
				t.v1[c] = dir
			}
		}
	})
}

func isType(path string, magic int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == magic
}

// Group is the control group of one sandbox, in one or more hierarchies. A nil
// Group is none at all.
type Group struct {
	path       string            // below the hierarchies: parent/id
	v2         string            // directory, or ""
	v2Err      error             // why there is none in version 2
	v1         map[string]string // controller to directory
	pure       bool
	devicesErr error // why it does not limit devices
}

// New makes the group parent/id and sets its limits. Where no group can be made
// and none is needed to hold a limit, it returns one that is empty.
func (t *Tree) New(parent, id string, l Limits) (*Group, error) {
	g := t.Unlimited(parent, id)
	if err := t.Limit(g, l); err != nil {
		return nil, errors.Join(err, g.Remove())
	}
	return g, nil
}

// Unlimited makes the group parent/id where one can be made without a limit to
// hold; Limit does the rest.
func (t *Tree) Unlimited(parent, id string) *Group {
	t.look()
	g := &Group{path: filepath.Join("/", parent, id), pure: t.pure, v1: map[string]string{}, devicesErr: errNotAsked}
	if t.v2 == "" {
		g.v2Err = fmt.Errorf("no cgroup version 2 hierarchy at %s", t.root)
		return g
	}
	dir := filepath.Join(t.v2, g.path)
	if g.v2Err = makeGroup(dir); g.v2Err == nil {
		g.v2 = dir
	}
	return g
}

// Limit sets the limits of g, once. To those of version 1 a process has yet to be
// moved: see Join.
func (t *Tree) Limit(g *Group, l Limits) error {
	if err := t.limit(g, l); err != nil {
		return fmt.Errorf("cgroup %s: %w", g.path, err)
	}
	return nil
}

func (t *Tree) limit(g *Group, l Limits) error {
	demanded := l.demanded()
	if l.Devices {
		// Where this cannot be done the sandbox has another way.
		if g.devicesErr = g.v2Err; g.v2 != "" {
			g.devicesErr = limitDevices(g.v2, l.Allow)
		}
	}
	if g.v2 == "" && t.pure && len(demanded) > 0 {
		return fmt.Errorf("limits of %s cannot be held: %w", strings.Join(demanded, ", "), g.v2Err)
	}
	if t.pure {
		if len(demanded) == 0 {
			return nil
		}
		if err := t.delegate(filepath.Dir(g.path), demanded); err != nil {
			return err
		}
		return l.write2(g.v2)
	}
	for _, c := range demanded {
		root, ok := t.v1[c]
		if !ok {
			return fmt.Errorf("limit of %s cannot be held: no such controller at %s", c, t.root)
		}
		dir := filepath.Join(root, g.path)
		if err := makeGroup(dir); err != nil {
			return fmt.Errorf("limit of %s cannot be held: %w", c, err)
		}
		g.v1[c] = dir
		if err := l.write1(c, dir); err != nil {
			return err
		}
	}
	return nil
}

// makeGroup makes a group's directory and those above it. Another process may
// remove an empty parent in between.
func makeGroup(dir string) error {
	var err error
	for range 10 {
		if err = os.Mkdir(dir, 0o755); err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err = os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return err
		}
	}
	return err
}

// delegate lets the groups in parent use controllers, all the way down to it.
func (t *Tree) delegate(parent string, controllers []string) error {
	want := "+" + strings.Join(controllers, " +")
	dir := t.v2
	for _, name := range append([]string{""}, strings.Split(strings.Trim(parent, "/"), "/")...) {
		dir = filepath.Join(dir, name)
		file := filepath.Join(dir, "cgroup.subtree_control")
		if have, err := os.ReadFile(file); err == nil && hasAll(string(have), controllers) {
			continue
		}
		err := write(file, want)
		switch {
		case errors.Is(err, syscall.EBUSY):
			return fmt.Errorf("%w: %s has processes of its own, so that limits cannot be passed on to groups in it (cgroups(7), \"no internal processes\"): start this program in a group below it", err, dir)
		case errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("%w: not all of the controllers %s are available in %s", err, strings.Join(controllers, ", "), dir)
		case err != nil:
			return err
		}
	}
	return nil
}

func hasAll(have string, want []string) bool {
	fields := strings.Fields(have)
	for _, w := range want {
		found := false
		for _, f := range fields {
			found = found || f == w
		}
		if !found {
			return false
		}
	}
	return true
}

// cpuPeriod is the span, in microseconds, in which CPU time is accounted: the
// kernel's default and Docker's.
const cpuPeriod = 100000

func (l Limits) quota() int64 { return max(1000, int64(l.CPUs*cpuPeriod)) } // the kernel's least is 1 ms

func (l Limits) write2(dir string) error {
	if l.Memory > 0 {
		if err := write(filepath.Join(dir, "memory.max"), strconv.FormatInt(l.Memory, 10)); err != nil {
			return err
		}
		// As much swap again, as Docker has it. The file is not there on a
		// kernel that accounts for none.
		err := write(filepath.Join(dir, "memory.swap.max"), strconv.FormatInt(l.Memory, 10))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if l.CPUs > 0 {
		if err := write(filepath.Join(dir, "cpu.max"), fmt.Sprintf("%d %d", l.quota(), cpuPeriod)); err != nil {
			return err
		}
	}
	if l.PIDs > 0 {
		return write(filepath.Join(dir, "pids.max"), strconv.FormatInt(l.PIDs, 10))
	}
	return nil
}

func (l Limits) write1(controller, dir string) error {
	switch controller {
	case "memory":
		if err := write(filepath.Join(dir, "memory.limit_in_bytes"), strconv.FormatInt(l.Memory, 10)); err != nil {
			return err
		}
		err := write(filepath.Join(dir, "memory.memsw.limit_in_bytes"), strconv.FormatInt(2*l.Memory, 10))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	case "cpu":
		if err := write(filepath.Join(dir, "cpu.cfs_period_us"), strconv.Itoa(cpuPeriod)); err != nil {
			return err
		}
		return write(filepath.Join(dir, "cpu.cfs_quota_us"), strconv.FormatInt(l.quota(), 10))
	default:
		return write(filepath.Join(dir, "pids.max"), strconv.FormatInt(l.PIDs, 10))
	}
}

// write writes to a file of the kernel's, which must not be made if it is not
// there.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// FD opens the version 2 group for CLONE_INTO_CGROUP (clone3(2)). Without one
// it returns -1. That one cannot be opened is an error: a process must not start
// outside what is to limit it.
func (g *Group) FD() (fd int, closeFD func(), err error) {
	if g == nil || g.v2 == "" {
		return -1, func() {}, nil
	}
	fd, err = unix.Open(g.v2, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, &os.PathError{Op: "open cgroup", Path: g.v2, Err: err}
	}
	return fd, func() { unix.Close(fd) }, nil
}

// Join lists the files to which a process writes "0" to join the version 1
// groups.
func (g *Group) Join() []string {
	if g == nil {
		return nil
	}
	var files []string
	for _, dir := range g.v1 {
		files = append(files, filepath.Join(dir, "cgroup.procs"))
	}
	return files
}

// Dirs gives the version 1 directories by controller.
func (g *Group) Dirs() map[string]string {
	if g == nil {
		return nil
	}
	return g.v1
}

// Unified says whether a process in the group can be shown a version 2
// hierarchy with itself at the top.
func (g *Group) Unified() bool { return g != nil && g.pure && g.v2 != "" }

// DevicesErr says why the group does not keep its processes from other devices
// than the standard ones and those allowed; nil: it does.
func (g *Group) DevicesErr() error {
	if g == nil {
		return errNotAsked
	}
	return g.devicesErr
}

var errNotAsked = errors.New("the cgroup is not to limit devices")

// OOM says whether a process of the group was killed for want of memory.
func (g *Group) OOM() bool {
	if g == nil {
		return false
	}
	if dir, ok := g.v1["memory"]; ok {
		return counter(filepath.Join(dir, "memory.oom_control"), "oom_kill") > 0
	}
	return g.pure && g.v2 != "" && counter(filepath.Join(g.v2, "memory.events"), "oom_kill") > 0
}

// counter reads one of the lines "name value" of a file.
func counter(file, name string) int64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

// Remove removes the group, whose processes have ended, and its parents that
// are empty.
func (g *Group) Remove() error {
	if g == nil {
		return nil
	}
	var errs []error
	for _, dir := range g.dirs() {
		if err := remove(dir); err != nil {
			errs = append(errs, err)
			continue
		}
		os.Remove(filepath.Dir(dir)) // fails where others use it
	}
	return errors.Join(errs...)
}

func (g *Group) dirs() []string {
	var dirs []string
	if g.v2 != "" {
		dirs = append(dirs, g.v2)
	}
	for _, dir := range g.v1 {
		dirs = append(dirs, dir)
	}
	return dirs
}

// remove removes a group. The kernel lets go of it a moment after the last
// process has ended.
func remove(dir string) error {
	wait := time.Millisecond / 4
	for deadline := time.Now().Add(5 * time.Second); ; {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err == unix.ENOTEMPTY || err == unix.EBUSY {
			removeBelow(dir)
		}
		if time.Now().After(deadline) || err != unix.EBUSY && err != unix.EINTR {
			return &os.PathError{Op: "remove cgroup", Path: dir, Err: err}
		}
		time.Sleep(wait)
		wait = min(2*wait, 50*time.Millisecond)
	}
}

// removeBelow removes the groups that the processes of a privileged sandbox may
// have made in theirs.
func removeBelow(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			sub := filepath.Join(dir, e.Name())
			removeBelow(sub)
			_ = unix.Rmdir(sub) // one that is in use keeps the one above, whose removal fails
		}
	}
}

// hierarchies lists the mount points of all hierarchies, those too whose
// controllers are none of ours: OCI runtimes use all.
func (t *Tree) hierarchies() []string {
	if t.pure {
		return []string{t.root}
	}
	entries, err := os.ReadDir(t.root)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() { // not the links from "cpu" to "cpu,cpuacct"
			out = append(out, filepath.Join(t.root, e.Name()))
		}
	}
	return out
}

// Find returns the group parent/id that an OCI runtime has made.
func (t *Tree) Find(parent, id string) *Group {
	t.look()
	g := &Group{pure: t.pure, v1: map[string]string{}}
	for _, root := range t.hierarchies() {
		dir := filepath.Join(root, filepath.Join("/", parent), id)
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			continue
		}
		if root == t.v2 {
			g.v2 = dir
		} else {
			g.v1[filepath.Base(root)] = dir
		}
	}
	return g
}

// Sweep kills and removes the groups in parent whose id is not alive.
func (t *Tree) Sweep(parent string, alive func(id string) bool) error {
	t.look()
	var errs []error
	for _, root := range t.hierarchies() {
		dir := filepath.Join(root, filepath.Join("/", parent))
		entries, err := os.ReadDir(dir)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		for _, e := range entries {
			if !e.IsDir() || alive(e.Name()) {
				continue
			}
			group := filepath.Join(dir, e.Name())
			killAll(group)
			errs = append(errs, remove(group))
		}
		os.Remove(dir)
	}
	return errors.Join(errs...)
}

// killAll kills the processes of a group and of those below it.
func killAll(dir string) {
	if write(filepath.Join(dir, "cgroup.kill"), "1") == nil { // Linux 5.14, version 2
		return
	}
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error { // the function returns none
		if err != nil || !d.IsDir() {
			return nil
		}
		data, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for line := range strings.Lines(string(data)) {
			// 0 is a process that we cannot see, and would be ourselves.
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 1 {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
		return nil
	})
}
