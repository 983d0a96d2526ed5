package testbase

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// npm is npm's own directory, wherever its program leads to; the programs npm
// and npx are links to it.
func npm(l *layer) error {
	program, err := exec.LookPath("npm")
	if err != nil {
		return fmt.Errorf("%w; Debian has it in the package npm", err)
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		return err
	}
	root := filepath.Dir(filepath.Dir(program)) // .../npm/bin/npm-cli.js
	if filepath.Base(program) != "npm-cli.js" {
		return fmt.Errorf("%s is not npm's own program", program)
	}
	everything := func(string, fs.DirEntry) bool { return true }
	if err := l.copyTree(root[1:], root, everything); err != nil {
		return err
	}
	for _, name := range []string{"npm", "npx"} {
		if err := l.symlink("usr/local/bin/"+name, path.Join(root, "bin", name+"-cli.js")); err != nil {
			return err
		}
	}
	// npm-cli.js begins with "#!/usr/bin/env node".
	return l.symlink("usr/bin/env", "/bin/busybox")
}

func toolchain(l *layer) error {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	return l.copyTree("usr/local/go", strings.TrimSpace(string(out)), func(_ string, d fs.DirEntry) bool { return d.Name() != ".git" })
}

// system takes files in the order of their names until it has enough of each
// kind; those far larger than others are left out.
func system(l *layer) error {
	const largest = 16 << 20
	for _, part := range []struct {
		from  string
		bytes int64
	}{{"/usr/bin", 40 << 20}, {"/usr/lib", 90 << 20}, {"/usr/share", 60 << 20}} {
		left := part.bytes
		err := filepath.WalkDir(part.from, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			name := path.Join("opt/system", p)
			if d.Type() == fs.ModeSymlink {
				target, err := os.Readlink(p)
				if err != nil {
					return err
				}
				return l.symlink(name, target)
			}
			fi, err := d.Info()
			if err != nil || !fi.Mode().IsRegular() || fi.Size() > largest {
				return err
			}
			if left -= fi.Size(); left < 0 {
				return fs.SkipAll
			}
			return l.copyFile(name, p)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
