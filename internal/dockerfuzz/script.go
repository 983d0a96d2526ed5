package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// scriptTime is much longer than any script takes.
const scriptTime = 20 * time.Second

// errHangs is that a script did not end in that time.
var errHangs = errors.New("it does not end")

// run is RUN, with real mounts: the program has a mount namespace of its own.
func (m *machine) run(s *system, in Instr) error {
	// A file of a layer below that has several names loses them when it is
	// written to: in overlayfs, and so in images.
	if err := breakLinks(s.root); err != nil {
		return err
	}
	who, home, err := s.credential()
	if err != nil {
		return err
	}
	// A working directory that is missing is made, for the user.
	if err := s.enter(int(who.Uid), int(who.Gid)); err != nil {
		return err
	}
	var undo []func() error
	err = m.mounts(s, in, &undo)
	if err == nil { // it may be in a mount
		err = s.enter(-1, -1)
	}
	if err == nil {
		err = s.execute(in, who, home)
	}
	for i := len(undo) - 1; i >= 0; i-- {
		err = errors.Join(err, undo[i]())
	}
	return err
}

func (m *machine) mounts(s *system, in Instr, undo *[]func() error) error {
	dev, err := mountPoint(s.root, "/dev", undo)
	if err != nil {
		return err
	}
	if err := mountOn("tmpfs", dev, "tmpfs", 0, undo); err != nil {
		return err
	}
	if err := unix.Mknod(filepath.Join(dev, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return err
	}
	// A script that empties the root cannot remove these.
	for _, name := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if err := m.cover(s.root, name, undo); err != nil {
			return err
		}
	}
	for _, mount := range in.Mounts {
		from := m.temporary() // a cache is empty, or what is in it is not looked at
		if mount.Type == "bind" {
			source, err := m.source(mount.From)
			if err != nil {
				return err
			}
			p, err := resolve(source, "/"+mount.Source, true)
			if err != nil {
				return err
			}
			if err := copyDir(filepath.Join(source, p), from); err != nil {
				return err
			}
		}
		at, err := mountPoint(s.root, mount.Target, undo)
		if err != nil {
			return err
		}
		if mount.Type == "tmpfs" {
			err = mountOn("tmpfs", at, "tmpfs", 0, undo)
		} else {
			err = mountOn(from, at, "", unix.MS_BIND, undo)
		}
		if err == nil && mount.Type == "bind" && !mount.RW {
			err = unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func mountOn(source, target, kind string, flags uintptr, undo *[]func() error) error {
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		return &os.PathError{Op: "mount", Path: target, Err: err}
	}
	// A script may move the directory that has the mount point in it.
	fd, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: target, Err: err}
	}
	*undo = append(*undo, func() error {
		defer unix.Close(fd)
		if err := unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", fd), unix.MNT_DETACH); err != nil {
			return &os.PathError{Op: "unmount", Path: target, Err: err}
		}
		return nil
	})
	return nil
}

// unmountBelow unmounts what other builders have left mounted below dir.
func unmountBelow(dir string) error {
	list, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			_ = unix.Unmount(f[4], unix.MNT_DETACH) // goes with one above it
		}
	}
	return nil
}

// cover mounts an empty file over the file p, which is made where it is missing.
func (m *machine) cover(root, p string, undo *[]func() error) error {
	p, err := resolve(root, p, true)
	if err != nil {
		return err
	}
	if _, err := mountPoint(root, path.Dir(p), undo); err != nil {
		return err
	}
	at := filepath.Join(root, p)
	if f, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL, 0o644); err == nil {
		f.Close()
		*undo = append(*undo, func() error {
			_ = os.Remove(at) // may have been moved
			return nil
		})
	} else if !os.IsExist(err) {
		return err
	}
	empty := filepath.Join(m.temporary(), "empty")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		return err
	}
	return mountOn(empty, at, "", unix.MS_BIND, undo)
}

// mountPoint makes target where it is missing; undo takes it away again, unless
// something came into it.
func mountPoint(root, target string, undo *[]func() error) (string, error) {
	p, err := resolve(root, target, true)
	if err != nil {
		return "", err
	}
	for _, d := range append(above(p[1:]), p[1:]) {
		real := filepath.Join(root, d)
		if err := os.Mkdir(real, 0o755); os.IsExist(err) {
			continue
		} else if err != nil {
			return "", err
		}
		*undo = append(*undo, func() error {
			_ = os.Remove(real) // fails where something came into it
			return nil
		})
	}
	return filepath.Join(root, p), nil
}

// credential is who the script runs as, and where that user's home is.
func (s *system) credential() (*syscall.Credential, string, error) {
	user, group, hasGroup := strings.Cut(s.user, ":")
	if user == "" {
		user = "0"
	}
	uid, err := strconv.Atoi(user)
	name := user
	var gid int
	if err != nil {
		id, ok := s.lookup("/etc/passwd", user, 2)
		if !ok {
			return nil, "", fmt.Errorf("no user %s", user)
		}
		uid, _ = strconv.Atoi(id)
	} else {
		name = map[int]string{0: "root", 1000: "bob"}[uid]
	}
	home := "/"
	if id, ok := s.lookup("/etc/passwd", name, 3); ok {
		gid, _ = strconv.Atoi(id)
		home, _ = s.lookup("/etc/passwd", name, 5)
	}
	groups := []uint32{}
	if hasGroup {
		if gid, err = strconv.Atoi(group); err != nil {
			id, ok := s.lookup("/etc/group", group, 2)
			if !ok {
				return nil, "", fmt.Errorf("no group %s", group)
			}
			gid, _ = strconv.Atoi(id)
		}
	} else if _, ok := s.lookup("/etc/passwd", name, 2); ok && name == "bob" {
		groups = append(groups, 50, 2000)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: append([]uint32{uint32(gid)}, groups...)}, home, nil
}

func (s *system) execute(in Instr, who *syscall.Credential, home string) error {
	ctx, cancel := context.WithTimeout(context.Background(), scriptTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/busybox", "sh", "-c", "umask 022; cd -P '"+s.workdir+"' || exit 1\n"+in.script())
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: s.root, Credential: who, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // what it has started, too
	cmd.Dir = "/"
	cmd.Env = append(append([]string{}, s.env...), s.args...)
	if home != "" {
		cmd.Env = append(cmd.Env, "HOME="+home)
	}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("run: %w", errHangs)
	}
	if err != nil {
		return fmt.Errorf("run: %w: %s", err, out)
	}
	return nil
}

func (s *system) enter(uid, gid int) error {
	p, err := resolve(s.root, s.workdir, true)
	if err != nil {
		return err
	}
	return makeDirs(s.root, p, 0o755, uid, gid)
}

// breakLinks gives each name a file of its own.
func breakLinks(root string) error {
	t, err := readTree(root)
	if err != nil {
		return err
	}
	for p, n := range t {
		if n.Group == "" || n.Group == p {
			continue
		}
		real := filepath.Join(root, p)
		own := filepath.Join(filepath.Dir(real), "~") // names can be as long as names may be
		st, err := os.Stat(filepath.Dir(real))
		if err != nil {
			return err
		}
		if err := copyBytes(real, own); err != nil {
			return err
		}
		if err := copyMeta(real, own, -1, -1, nil); err != nil {
			return err
		}
		if err := os.Rename(own, real); err != nil {
			return err
		}
		if err := setTime(filepath.Dir(real), st.ModTime().Unix()); err != nil {
			return err
		}
	}
	return nil
}
