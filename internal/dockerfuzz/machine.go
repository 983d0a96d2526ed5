package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machine carries a case out by the plainest means: a directory for each
// stage, files copied one by one, scripts run by chroot. It shares no code with
// the builder, so that it errs in other places.
type machine struct {
	c       *Case
	dir     string // for its files
	common  string // a directory with what is below all bases
	context string // with .dockerignore applied
	stages  map[int]*system
	bases   map[int]*system
	serial  int
}

// system is a root file system and its image's configuration.
type system struct {
	root    string
	bare    bool // made from scratch, with no layer yet
	env     []string
	args    []string
	user    string
	workdir string
	onbuild []Instr
}

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }

// interpret carries out c below dir. An error from a step is a failed build's.
func interpret(c *Case, dir, common string) (*system, error) {
	m := &machine{c: c, dir: dir, common: common, stages: map[int]*system{}, bases: map[int]*system{}}
	full := m.temporary()
	if err := writeContext(full, c.Context); err != nil {
		return nil, err
	}
	m.context = m.temporary()
	if err := m.filter(full, m.context, "."); err != nil {
		return nil, fmt.Errorf("filter context: %w", err)
	}
	return m.stage(len(c.Stages) - 1)
}

// temporary makes a directory.
func (m *machine) temporary() string {
	m.serial++
	d := filepath.Join(m.dir, fmt.Sprint(m.serial))
	if err := os.MkdirAll(d, 0o755); err != nil {
		panic(err) // no space, no rights: nothing goes on
	}
	return d
}

// filter copies what .dockerignore leaves. Files of a context belong to root.
func (m *machine) filter(from, to, rel string) error {
	entries, err := os.ReadDir(filepath.Join(from, rel))
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := path.Join(rel, e.Name())
		src, dst := filepath.Join(from, p), filepath.Join(to, p)
		out := ignored(m.c.Ignore, p)
		if e.IsDir() {
			if err := os.Mkdir(dst, 0o755); err != nil {
				return err
			}
			if err := m.filter(from, to, p); err != nil {
				return err
			}
			if left, err := os.ReadDir(dst); err == nil && out && len(left) == 0 {
				if err := os.Remove(dst); err != nil {
					return err
				}
				continue
			}
		} else if out {
			continue
		} else if err := copyBytes(src, dst); err != nil {
			return err
		}
		if err := copyMeta(src, dst, 0, 0, nil); err != nil {
			return err
		}
		// Capabilities of a context's files are lost on the way, in BuildKit too.
		_ = unix.Lremovexattr(dst, "security.capability")
	}
	return nil
}

// base is base image i.
func (m *machine) base(i int) (*system, error) {
	if s, ok := m.bases[i]; ok {
		return s, nil
	}
	b := m.c.Bases[i]
	s := &system{root: m.temporary(), user: b.User, workdir: b.Workdir, onbuild: b.OnBuild}
	s.env = append([]string{"PATH=" + imagePath}, b.Env...)
	if s.workdir == "" {
		s.workdir = "/"
	}
	if err := copyDir(m.common, s.root); err != nil {
		return nil, err
	}
	for _, l := range b.Layers {
		if err := applyLayer(s.root, l); err != nil {
			return nil, err
		}
	}
	m.bases[i] = s
	return s, nil
}

func applyLayer(root string, entries []Entry) error {
	for _, e := range entries {
		p := filepath.Join(root, e.Path)
		switch st, err := os.Lstat(p); {
		case e.Kind == Whiteout:
			if err := os.RemoveAll(p); err != nil {
				return err
			}
			continue
		case e.Kind == Opaque:
			inside, err := os.ReadDir(p)
			if err != nil {
				return err
			}
			for _, d := range inside {
				if err := os.RemoveAll(filepath.Join(p, d.Name())); err != nil {
					return err
				}
			}
			continue
		case err == nil && !(st.IsDir() && e.Kind == Dir):
			if err := os.RemoveAll(p); err != nil {
				return err
			}
		}
		if err := writeEntry(root, e); err != nil {
			return err
		}
	}
	return nil
}

// copyDir copies a tree with everything.
func copyDir(from, to string) error {
	if out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

// clone is a copy to build on.
func (m *machine) clone(s *system) (*system, error) {
	n := *s
	n.env, n.args, n.onbuild = slices.Clone(s.env), slices.Clone(s.args), slices.Clone(s.onbuild)
	n.root = m.temporary()
	return &n, copyDir(s.root, n.root)
}

// source is what a reference names, for reading.
func (m *machine) source(ref string) (string, error) {
	var s *system
	var err error
	switch kind, i := deref(ref); kind {
	case "":
		return m.context, nil
	case "base":
		s, err = m.base(i)
	default:
		s, err = m.stage(i)
	}
	if err != nil {
		return "", err
	}
	return s.root, nil
}

// stepError is the failure of an instruction; of a trigger where instr is
// negative.
type stepError struct {
	stage, instr int
	op           string
	err          error
}

func (e *stepError) Error() string {
	return fmt.Sprintf("stage %d, instruction %d (%s): %v", e.stage, e.instr, e.op, e.err)
}

func (e *stepError) Unwrap() error { return e.err }

// mend takes out instructions that fail, since random ones mostly do; the case
// may fail all the same.
func mend(c *Case, dir, common string) error {
	for i := range 12 {
		sub := filepath.Join(dir, fmt.Sprint("mend", i))
		_, err := interpret(withIgnoreFile(c), sub, common)
		if err := os.RemoveAll(sub); err != nil {
			return err
		}
		var e *stepError
		if !errors.As(err, &e) {
			return err
		}
		if e.instr < 0 { // in a trigger
			c.eachInstr(func(in *Instr) {
				if in.Trigger != nil {
					*in = Instr{Op: "LABEL", Args: []string{"l", "was ONBUILD"}}
				}
			})
			continue
		}
		s := &c.Stages[e.stage]
		s.Instrs = slices.Delete(s.Instrs, e.instr, e.instr+1)
	}
	return nil
}

// stage carries out stage i, once.
func (m *machine) stage(i int) (*system, error) {
	if s, ok := m.stages[i]; ok {
		return s, nil
	}
	var s *system
	var err error
	switch kind, k := deref(m.c.Stages[i].From); kind {
	case "scratch":
		s = &system{root: m.temporary(), bare: true, workdir: "/", env: []string{"PATH=" + imagePath}}
	case "base":
		s, err = m.base(k)
	default:
		s, err = m.stage(k)
	}
	if err != nil {
		return nil, err
	}
	if s, err = m.clone(s); err != nil {
		return nil, err
	}
	triggers := len(s.onbuild)
	instrs := append(s.onbuild, m.c.Stages[i].Instrs...)
	s.onbuild = nil
	for k, in := range instrs {
		if err := m.step(s, in); err != nil {
			return nil, &stepError{stage: i, instr: k - triggers, op: in.Op, err: err}
		}
	}
	m.stages[i] = s
	return s, nil
}

func (m *machine) step(s *system, in Instr) error {
	switch in.Op {
	case "COPY", "ADD":
		err := m.copy(s, in)
		s.bare = false
		return err
	case "RUN":
		s.bare = false
		return m.run(s, in)
	case "WORKDIR":
		return m.chdir(s, s.expand(in.Args[0]))
	case "USER":
		s.user = s.expand(in.Args[0])
	case "ENV":
		s.env = set(s.env, in.Args[0], s.expand(in.Args[1]))
	case "ARG":
		s.args = set(s.args, in.Args[0], s.expand(in.Args[1]))
	case "ONBUILD":
		s.onbuild = append(s.onbuild, *in.Trigger)
	}
	return nil
}

func set(env []string, name, value string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(s string) bool { return strings.HasPrefix(s, name+"=") })
	return append(env, name+"="+value)
}

// expand replaces $NAME, ${NAME} and ${NAME:-word}.
func (s *system) expand(text string) string {
	return os.Expand(text, func(name string) string {
		name, word, _ := strings.Cut(name, ":-")
		for _, list := range [][]string{s.env, s.args} {
			for _, e := range list {
				if v, ok := strings.CutPrefix(e, name+"="); ok && v != "" {
					return v
				}
			}
		}
		return word
	})
}

// chdir is WORKDIR: the directories belong to the user of the moment.
func (m *machine) chdir(s *system, dir string) error {
	if !path.IsAbs(dir) {
		dir = path.Join(s.workdir, dir)
	}
	s.workdir = path.Clean(dir)
	if s.workdir == "/" {
		return nil // is there
	}
	uid, gid := -1, -1
	if s.user != "" {
		var err error
		if uid, gid, err = s.owner(s.user); err != nil {
			return err
		}
	}
	s.bare = false
	p, err := resolve(s.root, s.workdir, true)
	if err != nil {
		return err
	}
	return makeDirs(s.root, p, 0o755, uid, gid)
}

// makeDirs makes p, which has no links in it, and what is missing above it.
func makeDirs(root, p string, mode uint32, uid, gid int) error {
	if p == "/" {
		return nil
	}
	switch st := lstat(root, p); {
	case st.IsDir():
		return nil
	case st&os.ModeIrregular == 0:
		return &os.PathError{Op: "mkdir", Path: p, Err: errNotDir}
	}
	if err := makeDirs(root, path.Dir(p), mode, uid, gid); err != nil {
		return err
	}
	real := filepath.Join(root, p)
	if err := os.Mkdir(real, 0o755); err != nil {
		return err
	}
	if uid >= 0 { // else the group is inherited
		if err := os.Lchown(real, uid, gid); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(real, &st); err != nil {
		return err
	}
	return unix.Chmod(real, mode|st.Mode&unix.S_ISGID) // inherited
}

var errNoUsers = errors.New("there is no /etc/passwd to look a name up in")

// lookup reads a field of the line of /etc/passwd or /etc/group that has a name
// in its first field.
func (s *system) lookup(file, name string, field int) (string, bool) {
	p, err := resolve(s.root, file, true)
	if err != nil {
		return "", false
	}
	data, err := os.ReadFile(filepath.Join(s.root, p))
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); f[0] == name && len(f) > field {
			return f[field], true
		}
	}
	return "", false
}

// owner reads USER:GROUP as COPY --chown does: a name that is not known is
// root, a user without a group brings its own, a number the same number.
func (s *system) owner(text string) (uid, gid int, err error) {
	user, group, hasGroup := strings.Cut(text, ":")
	number := func(name, file string) (int, error) {
		if n, err := strconv.Atoi(name); err == nil {
			return n, nil
		}
		if name == "" || name == "root" {
			return 0, nil
		}
		if s.bare {
			return 0, errNoUsers
		}
		id, _ := s.lookup(file, name, 2)
		n, _ := strconv.Atoi(id) // 0 when not found
		return n, nil
	}
	if uid, err = number(user, "/etc/passwd"); err != nil {
		return
	}
	gid = uid
	if id, ok := s.lookup("/etc/passwd", user, 3); ok {
		gid, _ = strconv.Atoi(id)
	}
	if hasGroup {
		if _, known := s.lookup("/etc/group", group, 2); known || s.bare || group == "root" || strings.Trim(group, "0123456789") == "" {
			gid, err = number(group, "/etc/group")
		} // an unknown group leaves the user's
	}
	return
}
