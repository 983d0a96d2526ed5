package container

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"
)

// resizer is a process with a terminal.
type resizer interface{ Resize(columns, rows int) error }

// followTerminal puts the user's terminal in raw mode and keeps p's of the same
// size, until restore is called. A nil tty does nothing.
func followTerminal(tty *os.File, p resizer) (restore func()) {
	if tty == nil {
		return func() {}
	}
	fd := int(tty.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return func() {} // not a terminal after all
	}
	resize := func() {
		if columns, rows, err := term.GetSize(fd); err == nil {
			_ = p.Resize(columns, rows) // it may have ended
		}
	}
	resize()
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	var wg sync.WaitGroup
	wg.Go(func() {
		for range changed {
			resize()
		}
	})
	return func() {
		signal.Stop(changed)
		close(changed)
		wg.Wait()
		_ = term.Restore(fd, old) // of a terminal that is gone
	}
}
