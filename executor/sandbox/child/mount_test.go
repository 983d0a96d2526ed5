package child

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemountFlags: a remount keeps what the mount has and nobody wants gone.
func TestRemountFlags(t *testing.T) {
	tests := []struct {
		name    string
		options []string
		has     int64
		want    uintptr
	}{
		{"nothing there", []string{"ro"}, 0, unix.MS_RDONLY},
		{"kept", []string{"ro"}, unix.ST_NODEV | unix.ST_NOSUID, unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID},
		{"all kept", nil, unix.ST_RDONLY | unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC, unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC},
		{"cleared", []string{"rw", "exec"}, unix.ST_RDONLY | unix.ST_NODEV | unix.ST_NOEXEC, unix.MS_NODEV},
		{"times are left alone", []string{"nosuid"}, unix.ST_RELATIME | unix.ST_NOATIME, unix.MS_NOSUID},
	}
	for _, tt := range tests {
		a, _ := splitOptions(tt.options)
		if got := a.remountFlags(tt.has); got != tt.want {
			t.Errorf("%s: flags %#x, want %#x", tt.name, got, tt.want)
		}
	}
}
