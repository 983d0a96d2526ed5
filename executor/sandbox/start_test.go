package sandbox

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A child is executed by a descriptor's path, and before that its own
// descriptors are put in order: the two must not meet on one number.
func TestStartProcessByDescriptor(t *testing.T) {
	program, err := os.Open("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	const number = 200 // of the program; its neighbours are the child's
	if err := unix.Dup3(int(program.Fd()), number, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(number)
	for below := 1; below <= 6; below++ {
		if err := unix.Dup3(int(null.Fd()), number-below, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		near := os.NewFile(uintptr(number-below), os.DevNull)
		p, err := startProcess(number, "true", &os.ProcAttr{Files: []*os.File{null, null, near}})
		near.Close()
		if err != nil {
			t.Errorf("start with a descriptor %d below the program's: %v", below, err)
			continue
		}
		if s, err := p.Wait(); err != nil || !s.Success() {
			t.Errorf("start with a descriptor %d below the program's: %v, %v", below, s, err)
		}
	}
}
