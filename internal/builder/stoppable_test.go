package builder

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"
)

func TestStoppable(t *testing.T) {
	if err := iotest.TestReader(stoppable(t.Context(), strings.NewReader("some text")), []byte("some text")); err != nil {
		t.Error(err)
	}
	r, w := io.Pipe()
	defer w.Close()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, wait := range map[string]func(context.Context) error{
		"read": func(ctx context.Context) error { _, err := io.ReadAll(stoppable(ctx, r)); return err },
		"open": func(ctx context.Context) error {
			_, err := openStoppable(ctx, func() (*os.File, error) { return os.Open(fifo) })
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Millisecond, cancel)
		if err := wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s of what never comes: %v, want it to end with the context", name, err)
		}
	}
	f, err := openStoppable(t.Context(), func() (*os.File, error) { return os.Open(os.DevNull) })
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	// Let the goroutine that opens the FIFO go.
	if fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
		unix.Close(fd)
	}
}
