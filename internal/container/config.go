package container

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/signal"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/network"
	"github.com/861fb494/build/internal/oci"
)

// defaultPath is PATH where the image sets none, as Docker has it.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultStopTimeout is Docker's.
const defaultStopTimeout = 10 * time.Second

// apply resolves what depends on image and options alone.
func (c *Config) apply(img oci.Config, o Options) error {
	c.Args = command(img, o.Process)
	if len(c.Args) == 0 || c.Args[0] == "" {
		return fmt.Errorf("image %s names no command: give one after the image", c.Image)
	}
	c.Dir = firstOf(o.Process.Dir, img.WorkingDir, "/")
	if !strings.HasPrefix(c.Dir, "/") {
		if o.Process.Dir != "" {
			return fmt.Errorf("working directory %q is not absolute", c.Dir)
		}
		c.Dir = "/" + c.Dir
	}
	c.StopSignal = firstOf(o.StopSignal, img.StopSignal, "SIGTERM")
	if _, err := signal.ParseSignal(c.StopSignal); err != nil {
		return fmt.Errorf("stop signal %q: %w", c.StopSignal, err)
	}
	c.StopTimeout = defaultStopTimeout
	if o.StopTimeout != nil {
		c.StopTimeout = *o.StopTimeout
	}
	if c.Network.Mode == "" {
		c.Network.Mode = network.Bridge
	}
	if err := c.setHostname(); err != nil {
		return err
	}
	env := []string{defaultPath, "HOSTNAME=" + c.Network.Hostname}
	if c.Terminal {
		env = append(env, "TERM=xterm")
	}
	c.Env = mergeEnv(env, img.Env, o.Process.Env)
	return nil
}

func (c *Config) setHostname() (err error) {
	if c.Network.Hostname == "" {
		c.Network.Hostname = ShortID(c.ID)
		if c.Network.Mode == network.Host {
			c.Network.Hostname, err = os.Hostname()
		}
	}
	if len(c.Network.Hostname) > 64 { // sethostname(2)
		err = fmt.Errorf("host name %q is longer than 64 bytes", c.Network.Hostname)
	}
	return err
}

// command is the image's entrypoint and command, with what the user gives in
// their place. An entrypoint of the user's also sets the image's command aside.
func command(img oci.Config, p ProcessOptions) []string {
	entry, args := img.Entrypoint, img.Cmd
	if p.Entrypoint != nil {
		entry, args = p.Entrypoint, nil
		if len(entry) == 1 && entry[0] == "" {
			entry = nil
		}
	}
	if len(p.Args) > 0 {
		args = p.Args
	}
	return slices.Concat(entry, args)
}

// mergeEnv joins lists of variables; of one name the last value counts, at the
// place of the first.
func mergeEnv(lists ...[]string) []string {
	var env []string
	at := map[string]int{}
	for _, list := range lists {
		for _, kv := range list {
			name, _, _ := strings.Cut(kv, "=")
			if i, ok := at[name]; ok {
				env[i] = kv
				continue
			}
			at[name] = len(env)
			env = append(env, kv)
		}
	}
	return env
}

func firstOf(ss ...string) string {
	for _, s := range ss {
		if s != "" {
			return s
		}
	}
	return ""
}

func (c *Config) stopSignal() syscall.Signal {
	sig, err := signal.ParseSignal(c.StopSignal)
	if err != nil {
		return syscall.SIGTERM
	}
	return sig
}

// setUser looks a USER up in the files that open opens, and sets HOME from
// there if nothing else does.
func (c *Config) setUser(name string, open func(string) (*os.File, error)) error {
	var found *user.ExecUser
	err := withUserFiles(open, func(passwd, group io.Reader) (err error) {
		found, err = user.GetExecUser(name, &user.ExecUser{Home: "/"}, passwd, group)
		return err
	})
	if err != nil {
		return fmt.Errorf("user %q: %w", name, err)
	}
	c.User.UID, c.User.GID = uint32(found.Uid), uint32(found.Gid)
	// The group itself too, as Docker has it: else a process could drop it, and
	// with it a mode that denies that group something (CVE-2022-36109).
	c.User.Groups = []uint32{c.User.GID}
	for _, g := range found.Sgids {
		if g := uint32(g); g != c.User.GID {
			c.User.Groups = append(c.User.Groups, g)
		}
	}
	if !slices.ContainsFunc(c.Env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		c.Env = append(c.Env, "HOME="+found.Home)
	}
	return nil
}

// maxUserFile bounds what is read of a passwd or group file, which may be
// anything.
const maxUserFile = 16 << 20

// openIn opens files of a tree, links followed inside it.
func openIn(t *tree.Tree) func(string) (*os.File, error) {
	return func(path string) (*os.File, error) {
		at, err := t.Resolve(path, true)
		if err != nil {
			return nil, err
		}
		return t.Open(at)
	}
}

// openInProcess opens files of the root of a process, links followed inside it.
func openInProcess(pid int) func(string) (*os.File, error) {
	return func(path string) (*os.File, error) {
		root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(root)
		fd, err := unix.Openat2(root, path, &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// withUserFiles opens passwd and group. One that is not there is nil to f.
func withUserFiles(open func(string) (*os.File, error), f func(passwd, group io.Reader) error) error {
	var readers [2]io.Reader
	for i, path := range []string{"/etc/passwd", "/etc/group"} {
		file, err := open(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil {
			return err
		}
		defer file.Close()
		readers[i] = io.LimitReader(file, maxUserFile)
	}
	return f(readers[0], readers[1])
}
