package sandbox

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// thread is a thread of this process that goes into namespaces of its own, mounts
// there what a sandbox is to have, starts the sandbox's first process, which stays
// there, and comes back. It lasts as long as this process: the kernel kills a child
// with Pdeathsig when the thread ends that started it.
type thread struct {
	requests chan func()
}

// threads are those that have nothing to do.
var threads struct {
	mu   sync.Mutex
	idle []*thread
}

// takeThread returns a thread that has nothing to do, for release to be called.
func takeThread() (*thread, error) {
	threads.mu.Lock()
	defer threads.mu.Unlock()
	if n := len(threads.idle); n > 0 {
		t := threads.idle[n-1]
		threads.idle = threads.idle[:n-1]
		return t, nil
	}
	t := &thread{requests: make(chan func())}
	began := make(chan error)
	go t.run(began)
	if err := <-began; err != nil {
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	return t, nil
}

// release gives the thread back, if err, of leave, is nil: one that is not where it
// came from ends, and with it what it has started.
func (t *thread) release(err error) {
	if err != nil {
		close(t.requests)
		return
	}
	threads.mu.Lock()
	defer threads.mu.Unlock()
	threads.idle = append(threads.idle, t)
}

// run does what is asked for, on one thread.
func (t *thread) run(began chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The namespaces of the first thread are what others take for those of the
		// process. While this goroutine holds it, another is on another one.
		other := make(chan error)
		go t.run(other)
		err := <-other
		runtime.UnlockOSThread()
		began <- err
		return
	}
	err := t.begin()
	began <- err
	if err != nil {
		return
	}
	for f := range t.requests {
		f()
	}
	// The thread ends, since it is locked.
}

// begin makes the thread one that can go into namespaces.
func (t *thread) begin() error {
	if _, err := home(); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	// Not that of who builds: mount points, and what the command makes, have the
	// same modes everywhere.
	unix.Umask(0o022)
	return nil
}

// do has the thread do f, and waits for it.
func (t *thread) do(f func()) {
	done := make(chan struct{})
	t.requests <- func() {
		defer close(done)
		f()
	}
	<-done
}

// kinds are the namespaces that a sandbox's thread goes into; it makes those of
// networks later, where they are needed.
var kinds = [...]struct {
	name string
	flag int
}{{"mnt", unix.CLONE_NEWNS}, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC}, {"net", unix.CLONE_NEWNET}}

// origin is where the threads come from: namespaces, in the order of kinds, and the
// root, which need not be that of the mount namespace.
type origin struct {
	namespaces [len(kinds)]int
	root       int
}

// home is the origin of this process's threads, open for as long as it lasts.
var home = sync.OnceValues(func() (h origin, err error) {
	for i, k := range kinds {
		if h.namespaces[i], err = unix.Open("/proc/thread-self/ns/"+k.name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return h, fmt.Errorf("open %s namespace: %w", k.name, err)
		}
	}
	if h.root, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return h, fmt.Errorf("open root: %w", err)
	}
	return h, nil
})

// enter goes into new namespaces, but for the network's. It is called on the
// thread.
func (t *thread) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC); err != nil {
		return fmt.Errorf("new namespaces: %w", err)
	}
	if err := unix.Chdir("/"); err != nil { // nothing of the host's is kept busy
		return errors.Join(fmt.Errorf("enter root: %w", err), t.leave())
	}
	return nil
}

// leave comes back from there. What was mounted there is gone with the last process
// that is in there. It is called on the thread.
func (t *thread) leave() error {
	h, err := home()
	if err != nil {
		return err
	}
	for i, k := range kinds {
		if err := unix.Setns(h.namespaces[i], k.flag); err != nil {
			return fmt.Errorf("leave %s namespace: %w", k.name, err)
		}
	}
	if err := unix.Fchdir(h.root); err != nil {
		return fmt.Errorf("return to root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("return to root: %w", err)
	}
	return nil
}
