package cgroup

import (
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLoadProgramInterrupted loads programs while signals come in, which the
// kernel's verifier answers with EAGAIN.
func TestLoadProgramInterrupted(t *testing.T) {
	fd, err := loadProgram(deviceCode(nil))
	if err != nil {
		t.Skip("needs bpf(2): ", err)
	}
	unix.Close(fd)
	stop := make(chan struct{})
	var signals sync.WaitGroup
	for range 2 {
		signals.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					unix.Kill(os.Getpid(), unix.SIGURG) // which Go's runtime takes for one of its own
				}
			}
		})
	}
	for range 1000 {
		fd, err := loadProgram(deviceCode([]Device{{Major: 10, Minor: 237, Access: "w"}}))
		if err != nil {
			t.Error(err)
			break
		}
		unix.Close(fd)
	}
	close(stop)
	signals.Wait()
}
