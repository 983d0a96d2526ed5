package container

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal opens a pseudo-terminal: our end and the user's.
func openTerminal(t *testing.T, columns, rows int) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	setSize(t, slave, columns, rows)
	return master, slave
}

func setSize(t *testing.T, tty *os.File, columns, rows int) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(columns), Row: uint16(rows)}); err != nil {
		t.Fatal(err)
	}
}

// buffer is a bytes.Buffer that may be read while it is written to.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) waitFor(t *testing.T, s string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := b.String()
		if strings.Contains(got, s) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("output %q, want %q in it", got, s)
		}
	}
}

func TestTerminal(t *testing.T) {
	f := setup(t)
	_, tty := openTerminal(t, 100, 30)
	cooked, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	c := f.create(image(`[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all $TERM; while read l; do [ "$l" = end ] && exit 3; stty size; done`),
		Options{Process: ProcessOptions{Terminal: true, Stdin: true}})
	in, typing, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var out buffer
	ended := make(chan string)
	go func() {
		code, err := f.Supervise(context.Background(), c, Streams{In: in, Out: &out, Terminal: tty})
		ended <- fmt.Sprint(code, err)
	}()
	out.waitFor(t, "all xterm\r\n")
	if raw, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil || raw.Lflag&unix.ECHO != 0 {
		t.Errorf("the user's terminal is not raw: %+v, %v", raw, err)
	}
	typing.WriteString("size\n")
	out.waitFor(t, "30 100\r\n")
	setSize(t, tty, 80, 24)
	unix.Kill(os.Getpid(), unix.SIGWINCH) // it is not our controlling terminal
	for range 50 {
		typing.WriteString("size\n")
		time.Sleep(5 * time.Millisecond)
	}
	out.waitFor(t, "24 80\r\n")
	typing.WriteString("end\n")
	if got := <-ended; got != "3 <nil>" {
		t.Errorf("Supervise = %s, want 3", got)
	}
	typing.Close()
	if now, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil || *now != *cooked {
		t.Errorf("the user's terminal was not restored: %+v, %v", now, err)
	}
}

func TestExecTerminal(t *testing.T) {
	f := setup(t)
	c := f.detach(image("sleep 1000"), Options{})
	_, tty := openTerminal(t, 90, 20)
	var out buffer
	code, err := f.Exec(context.Background(), c.ID,
		ExecOptions{Args: []string{"/bin/sh", "-c", "sleep 0.1; stty size; exit 4"}, Terminal: true},
		Streams{Out: &out, Terminal: tty})
	if err != nil || code != 4 {
		t.Errorf("Exec = %d, %v, want 4", code, err)
	}
	out.waitFor(t, "20 90\r\n")
}
