package limits

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// childVariable is set for a process that becomes the first one of new
// namespaces; its value is the directory to work in.
const childVariable = "BUILD_BENCH_CHILD"

// Child does a child's work and never returns where this process is one.
// Otherwise it does nothing.
func Child() {
	if dir := os.Getenv(childVariable); dir != "" {
		fmt.Fprintln(os.Stderr, "limits:", become(dir))
		os.Exit(1)
	}
}

// become makes an overlay of dir the root file system and executes true there.
func become(dir string) error {
	root := filepath.Join(dir, "root")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := mountOverlay(dir, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", filepath.Join(root, "proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(root, "dev"), "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Exec("/bin/busybox", []string{"true"}, nil)
}

// mountOverlay mounts dir's lower, upper and work at its root.
func mountOverlay(dir, more string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	options := "lowerdir=" + at("lower") + ",upperdir=" + at("upper") + ",workdir=" + at("work") + more
	if err := unix.Mount("overlay", at("root"), "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay: %w", err)
	}
	return nil
}

// processes measures the start of processes.
func processes(ctx context.Context, dir string) ([]Limit, error) {
	bare, err := startBare(ctx, dir)
	if err != nil {
		return nil, err
	}
	all := []Limit{bare}
	if err := prepareRoot(dir); err != nil {
		return all, err
	}
	for _, m := range []struct {
		name  string
		flags uintptr
	}{
		{"exec in new namespaces, overlay, /proc, /dev, pivot_root", 0},
		{"the same with a network namespace", unix.CLONE_NEWNET},
	} {
		took, err := middle(21, func() error { return startChild(ctx, dir, m.flags) }, nil)
		if err != nil {
			return all, fmt.Errorf("%s: %w", m.name, err)
		}
		all = append(all, Limit{m.name, ms(took), "ms"})
	}
	for _, m := range []struct{ name, options string }{
		{"overlay mount and unmount", ""}, {"overlay mount and unmount, volatile", ",volatile"},
	} {
		took, err := middle(21, func() error {
			if err := mountOverlay(dir, m.options); err != nil {
				return err
			}
			return unix.Unmount(filepath.Join(dir, "root"), unix.MNT_DETACH)
			// A volatile mount leaves a mark that forbids the next one.
		}, func() error { return os.RemoveAll(filepath.Join(dir, "work", "work")) })
		if err != nil {
			return all, fmt.Errorf("%s: %w", m.name, err)
		}
		all = append(all, Limit{m.name, ms(took), "ms"})
	}
	return all, nil
}

// startBare measures a Go program that does nothing.
func startBare(ctx context.Context, dir string) (Limit, error) {
	source, program := filepath.Join(dir, "bare.go"), filepath.Join(dir, "bare")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		return Limit{}, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Limit{}, fmt.Errorf("build a bare program: %w\n%s", err, out)
	}
	took, err := middle(51, func() error { return exec.CommandContext(ctx, program).Run() }, nil)
	return Limit{"start of a Go program that does nothing", ms(took), "ms"}, err
}

// prepareRoot makes the directories of mountOverlay; the lower one has a
// static busybox.
func prepareRoot(dir string) error {
	for _, name := range []string{"lower/bin", "lower/proc", "lower/dev", "upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	program, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w; Debian has it in the package busybox-static", err)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "lower/bin/busybox"), text, 0o755)
}

// startChild runs this program as Child; flags are further namespaces.
func startChild(ctx context.Context, dir string, flags uintptr) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = []string{childVariable + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | flags}
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	return nil
}
