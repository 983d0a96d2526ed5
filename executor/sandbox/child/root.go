package child

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/861fb494/build/executor/sandbox/stub"
	"golang.org/x/sys/unix"
)

// rootfs is a root filesystem in the making. Until pivot it is mounted over "/"
// of the private mount namespace, which hides nothing: a lookup that begins at
// "/" does not cross onto what is mounted there. So paths are still the host's,
// and those of the root are reached through fd alone.
type rootfs struct {
	fd    int
	base  string // where it is mounted, "/" if not in a bundle
	upper string // host directory that takes what is written to the root; "" if unknown
	nodev bool
	// memory is the file system of files in memory, attached nowhere; -1: there
	// is none yet. files is how many it has.
	memory, files int
	ahead         []made     // filesystems that nobody has needed yet
	devFilled     bool       // /dev has the default devices
	dirs          []*MadeDir // parents of mount points that were made, in order

	// outside says that this is not the sandbox's first process, and inside what
	// is left for that to mount: see Prepare.
	outside bool
	inside  []insideMount
	covers  []coveredPath
}

// mountRoot detaches the mount namespace from the host's and mounts the root in
// it, at base.
func (c *Config) mountRoot(base string) (*rootfs, error) {
	m := c.Root
	// Slave, so that what the host unmounts meanwhile is not held by us; and
	// nothing of ours reaches the host.
	r := &rootfs{fd: -1, base: base, upper: c.Upper, nodev: c.NoDev, memory: -1, ahead: c.ahead, outside: c.outside}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		r.close()
		return nil, fmt.Errorf("make mount namespace private: %w", err)
	}
	if c.NoDev {
		m.Options = append([]string{"nodev"}, m.Options...)
	}
	var err error
	switch m.Type {
	case "overlay":
		r.fd, err = overlayTree(m)
	case "bind":
		r.fd, err = bindTree(m)
	default:
		r.fd, err = filesystemTree(m)
	}
	if err != nil {
		r.fd = -1
		r.close()
		return nil, fmt.Errorf("mount root: %w", err)
	}
	if err := attach(r.fd, unix.AT_FDCWD, base); err != nil {
		r.close()
		return nil, fmt.Errorf("mount root: %w", err)
	}
	return r, nil
}

// close closes the descriptors. The mounts are left to the mount namespace.
func (r *rootfs) close() {
	closeFD(r.fd)
	r.fd = -1
	r.closeMemory()
	r.closeAhead()
	for _, m := range r.inside {
		unix.Close(m.at)
	}
	for _, p := range r.covers {
		unix.Close(p.fd)
	}
	r.inside, r.covers = nil, nil
}

// pivot makes r the root of this process and lets go of the old one.
func (r *rootfs) pivot() error {
	p := new(stub.Program)
	addPivot(p, stub.Int(r.fd))
	if err := p.Run(); err != nil {
		return err
	}
	unix.Close(r.fd)
	r.fd = -1
	return nil
}

// addPivot makes the directory root the root, and lets go of the old one.
func addPivot(p *stub.Program, root stub.Arg) {
	here := p.String(".")
	p.Do("enter root", unix.SYS_FCHDIR, root)
	// The old root ends up on top of the new one (pivot_root(2), "pivot_root
	// (".", ".")"), and is taken away from there.
	p.Do("pivot_root", unix.SYS_PIVOT_ROOT, here, here)
	p.Do("unmount old root", unix.SYS_UMOUNT2, here, stub.Int(unix.MNT_DETACH))
	p.Do("enter root", unix.SYS_CHDIR, p.String("/"))
}

// overlayTree makes an overlay mount that is attached nowhere yet. A lower
// directory each is one fsconfig(2) call, so their number is not limited by a
// page of options; before Linux 6.5 it is.
func overlayTree(m Mount) (int, error) {
	lowers := splitLower(optionValue(m.Options, "lowerdir"))
	plain := strings.Contains(optionValue(m.Options, "lowerdir"), "::") // data-only layers
	for _, l := range lowers {
		plain = plain || len(l) > maxFSConfig
	}
	if !plain {
		fd, err := overlayByLayer(m, lowers)
		if err == nil || !errors.Is(err, errNoLowerPlus) {
			return fd, err
		}
	}
	return overlayByMount(m, lowers)
}

// maxFSConfig is the longest string that fsconfig(2) takes.
const maxFSConfig = 255

var errNoLowerPlus = errors.New("overlay: no lowerdir+ here")

func overlayByLayer(m Mount, lowers []string) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("overlay: fsopen: %w", err)
	}
	defer unix.Close(fs)
	for i, l := range lowers {
		err := unix.FsconfigSetString(fs, "lowerdir+", l)
		if err != nil && i == 0 && unknownParameter(fs) {
			return -1, errNoLowerPlus
		}
		if err != nil {
			return -1, fsError(fs, "overlay: lower directory "+l, err)
		}
	}
	attr, options := splitOptions(m.Options)
	for _, o := range options {
		if strings.HasPrefix(o, "lowerdir=") {
			continue
		}
		if err := fsOption(fs, o); err != nil {
			return -1, fmt.Errorf("overlay: %w", err)
		}
	}
	return fsCreate(fs, "overlay", attr.set)
}

// overlayByMount is the way of mount(2). The options have to fit into a page:
// where they do not, paths are given relative to the directory they share.
func overlayByMount(m Mount, lowers []string) (int, error) {
	attr, options := splitOptions(m.Options)
	data := strings.Join(options, ",")
	dir := ""
	if len(data) >= os.Getpagesize() {
		dir = commonDir(lowers)
		for i, l := range lowers {
			lowers[i] = escapeLower(strings.TrimPrefix(strings.TrimPrefix(l, dir), "/"))
		}
		for i, o := range options {
			if strings.HasPrefix(o, "lowerdir=") {
				options[i] = "lowerdir=" + strings.Join(lowers, ":")
			}
		}
		data = strings.Join(options, ",")
	}
	if len(data) >= os.Getpagesize() {
		return -1, fmt.Errorf("overlay: options of %d bytes for %d layers are more than this kernel takes (Linux 6.5 has no such limit)", len(data), len(lowers))
	}
	if dir != "" {
		if err := unix.Chdir(dir); err != nil {
			return -1, &os.PathError{Op: "chdir", Path: dir, Err: err}
		}
	}
	// Mounted on "/" it is then picked up by path: "/.." stays at the root of
	// this process, "/" followed by a mount there is what is on top.
	if err := unix.Mount("overlay", "/", "overlay", attr.mountFlags(), data); err != nil {
		return -1, fmt.Errorf("mount overlay: %w", err)
	}
	return pickUp()
}

// pickUp takes the mount on top of "/" off it and returns it detached.
func pickUp() (int, error) {
	// A lookup of ".." does cross onto what is mounted on where it arrives.
	top, err := unix.Open("/..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open new root: %w", err)
	}
	defer unix.Close(top)
	fd, err := unix.OpenTree(top, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("open_tree of new root: %w", err)
	}
	return fd, nil
}

// splitLower splits the value of lowerdir=, in which a backslash makes a colon,
// a comma or a backslash part of a path.
func splitLower(v string) []string {
	if v == "" {
		return nil
	}
	var out []string
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		switch {
		case v[i] == '\\' && i+1 < len(v):
			i++
			b.WriteByte(v[i])
		case v[i] == ':':
			out = append(out, b.String())
			b.Reset()
		default:
			b.WriteByte(v[i])
		}
	}
	return append(out, b.String())
}

func escapeLower(path string) string {
	return strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`).Replace(path)
}

// commonDir returns the deepest directory that holds all paths.
func commonDir(paths []string) string {
	if len(paths) == 0 {
		return ""
	}
	dir := path.Dir(paths[0])
	for _, p := range paths {
		for dir != "/" && !strings.HasPrefix(p, dir+"/") {
			dir = path.Dir(dir)
		}
	}
	return dir
}

func optionValue(options []string, key string) string {
	for _, o := range options {
		if v, ok := strings.CutPrefix(o, key+"="); ok {
			return v
		}
	}
	return ""
}
