package network

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dump calls list again where what it lists changed meanwhile, as the kernel
// says by NLM_F_DUMP_INTR: other processes make and remove devices all the time.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for tries := 20; ; tries-- {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || tries == 0 {
			return all, err
		}
	}
}
