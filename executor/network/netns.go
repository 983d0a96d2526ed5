package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// newNetNS makes a network namespace with its loopback up and returns a file
// descriptor that keeps it alive. It has no name, so it goes when the
// descriptor and the processes in it have gone, however they end.
func newNetNS() (*os.File, error) {
	var ns *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		if ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		if err := raiseLoopback(); err != nil {
			ns.Close()
			return err
		}
		// What Docker sets too: the image's user may be any, and the ports are
		// the namespace's own. Kernels before 4.11 lack the first.
		for name, value := range map[string]string{
			"net/ipv4/ip_unprivileged_port_start": "0",
			"net/ipv4/ping_group_range":           "0 2147483647",
		} {
			if err := setSysctl(name, value); err != nil && !errors.Is(err, os.ErrNotExist) {
				ns.Close()
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ns, nil
}

// inNetNS runs f in a network namespace. Sockets that f opens stay in it.
func inNetNS(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own that may change its network
// namespace. The thread is put back into its own namespace afterwards; where
// that fails it is not used again.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f()
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		// A goroutine that ends locked takes its thread along.
		own.Close()
		done <- err
	}()
	return <-done
}

// raiseLoopback sets lo up in the calling thread's namespace.
func raiseLoopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// setSysctl writes a value below /proc/sys; those of net are the calling
// thread's namespace's. Nothing is written where the value is there already,
// so that a read-only /proc/sys does no harm.
func setSysctl(name, value string) error {
	path := "/proc/sys/" + name
	if old, err := os.ReadFile(path); err == nil && string(old) == value+"\n" {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", name, value, err)
	}
	return nil
}
