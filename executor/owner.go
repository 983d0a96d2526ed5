package executor

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	dchapes "github.com/tonistiigi/dchapes-mode"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/llb"
)

// maxUserFile bounds /etc/passwd and /etc/group, which an image brings.
const maxUserFile = 10 << 20

// openUserFile opens a file of the tree, links followed inside it.
func openUserFile(t *tree.Tree, p string) (io.ReadCloser, error) {
	p, err := t.Resolve(p, true)
	if err != nil {
		return nil, err
	}
	f, err := t.Open(p)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.Size() > maxUserFile {
		err = fmt.Errorf("%s is larger than %d bytes", p, maxUserFile)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// owner looks up an Owner in the tree. As in BuildKit a user's group is its
// number (or its passwd entry's), a name that is not known or empty is root, and
// no name can be looked up where there is no tree.
func (e *edit) owner(o llb.Owner) (*owner, error) {
	if o == "" {
		return &owner{}, nil
	}
	name, group, hasGroup := strings.Cut(string(o), ":")
	var who owner
	if id, ok := parseID(name); ok {
		who = owner{id, id}
	} else if name != "" {
		if !e.base {
			return nil, fmt.Errorf("owner %q: the image is empty and has no /etc/passwd to find %q in; use a number", o, name)
		}
		if err := e.userByName(name, &who); err != nil {
			return nil, err
		}
	}
	if !hasGroup {
		return &who, nil
	}
	if id, ok := parseID(group); ok || group == "" {
		who.gid = id
		return &who, nil
	}
	if !e.base {
		return nil, fmt.Errorf("owner %q: the image is empty and has no /etc/group to find %q in; use a number", o, group)
	}
	return &who, e.groupByName(group, &who)
}

func parseID(s string) (int, bool) {
	if s == "root" {
		return 0, true
	}
	n, err := strconv.ParseInt(s, 10, 32)
	return int(n), err == nil && n >= 0
}

func (e *edit) userByName(name string, who *owner) error {
	f, err := openUserFile(e.to, "/etc/passwd")
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	users, err := user.ParsePasswdFilter(f, func(u user.User) bool { return u.Name == name })
	if err == nil && len(users) > 0 {
		*who = owner{users[0].Uid, users[0].Gid}
	}
	return err
}

func (e *edit) groupByName(name string, who *owner) error {
	f, err := openUserFile(e.to, "/etc/group")
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	groups, err := user.ParseGroupFilter(f, func(g user.Group) bool { return g.Name == name })
	if err == nil && len(groups) > 0 {
		who.gid = groups[0].Gid
	}
	return err
}

// mode is a --chmod; the zero value leaves modes as they are.
type mode struct {
	octal    uint32
	hasOctal bool
	symbolic *dchapes.Set
}

func parseMode(s string) (mode, error) {
	if s == "" {
		return mode{}, nil
	}
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		if n > 0o7777 {
			return mode{}, fmt.Errorf("mode %q is not between 0 and 07777", s)
		}
		return mode{octal: uint32(n), hasOctal: true}, nil
	}
	set, err := dchapes.ParseWithUmask(s, 0)
	if err != nil {
		return mode{}, fmt.Errorf("mode %q: %w", s, err)
	}
	return mode{symbolic: &set}, nil
}

// of is what becomes of st_mode m.
func (m mode) of(st uint32) uint32 {
	switch {
	case m.hasOctal:
		return st&unix.S_IFMT | m.octal
	case m.symbolic != nil:
		fm := fs.FileMode(st & 0o777)
		if st&unix.S_IFMT == unix.S_IFDIR {
			fm |= os.ModeDir
		}
		if st&unix.S_ISUID != 0 {
			fm |= os.ModeSetuid
		}
		if st&unix.S_ISGID != 0 {
			fm |= os.ModeSetgid
		}
		if st&unix.S_ISVTX != 0 {
			fm |= os.ModeSticky
		}
		fm = m.symbolic.Apply(fm)
		out := st&unix.S_IFMT | uint32(fm.Perm())
		if fm&os.ModeSetuid != 0 {
			out |= unix.S_ISUID
		}
		if fm&os.ModeSetgid != 0 {
			out |= unix.S_ISGID
		}
		if fm&os.ModeSticky != 0 {
			out |= unix.S_ISVTX
		}
		return out
	}
	return st
}

// forParents is the mode of directories that are made to put something into;
// setuid, setgid and sticky bits are meant for what is put there.
func (m mode) forParents() uint32 {
	if m.hasOctal {
		return m.octal & 0o777
	}
	return 0o755
}
