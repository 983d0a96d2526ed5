package network

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestDump(t *testing.T) {
	other := errors.New("other")
	for _, tt := range []struct {
		name        string
		interrupted int // so many calls
		then        error
		want        error
		calls       int
	}{
		{"at once", 0, nil, nil, 1},
		{"interrupted", 3, nil, nil, 4},
		{"fails", 1, other, other, 2},
		{"never still", 1000, nil, netlink.ErrDumpInterrupted, 21},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			_, err := dump(func() ([]int, error) {
				if calls++; calls <= tt.interrupted {
					return nil, netlink.ErrDumpInterrupted
				}
				return nil, tt.then
			})
			if !errors.Is(err, tt.want) || calls != tt.calls {
				t.Errorf("dump: error %v after %d calls, want %v after %d", err, calls, tt.want, tt.calls)
			}
		})
	}
}
