package sandbox_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
)

// TestDevices gives the process /dev/loop-control (loop(4)), which can be opened
// without anything being done.
func TestDevices(t *testing.T) {
	control := func(path, access string) sandbox.Device {
		return sandbox.Device{Path: path, Mode: unix.S_IFCHR | 0o640, Major: 10, Minor: 237, UID: 7, GID: 8, Access: access}
	}
	const denied = "/bin/sh: can't open /dev/control: Operation not permitted\n"
	for _, tt := range []struct {
		name    string
		devices []sandbox.Device
		script  string
		want    string
	}{
		{
			"its node", []sandbox.Device{control("/dev/control", "rwm"), control("/dev/sub/dir/control", "rwm"), control("/opt/control", "rwm")},
			"stat -c '%n %a %u:%g %F %t:%T' /dev/control /dev/sub/dir/control /opt/control",
			"/dev/control 640 7:8 character special file a:ed\n/dev/sub/dir/control 640 7:8 character special file a:ed\n/opt/control 640 7:8 character special file a:ed\n",
		},
		{"read and write", []sandbox.Device{control("/dev/control", "rw")}, ": <>/dev/control && echo opened", "opened\n"},
		{"write only", []sandbox.Device{control("/dev/control", "w")}, ": >>/dev/control && echo opened; : </dev/control", "opened\n" + denied},
		{
			"several", []sandbox.Device{{Path: "/dev/disk", Mode: unix.S_IFBLK | 0o600, Major: 254, Access: "r"}, control("/dev/control", "rwm")},
			": <>/dev/control && echo opened; stat -c '%F' /dev/disk; : >>/dev/disk", "opened\nblock special file\n/bin/sh: can't create /dev/disk: Operation not permitted\n",
		},
		{"a pipe", []sandbox.Device{{Path: "/run/pipe", Mode: unix.S_IFIFO | 0o600}}, "echo through >/run/pipe & cat /run/pipe", "through\n"},
		{"a second node of one that is allowed", []sandbox.Device{control("/dev/control", "rwm")}, "echo x >/dev/full; mknod /dev/other c 1 2; : </dev/other", "sh: write error: No space left on device\n/bin/sh: can't open /dev/other: Operation not permitted\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachSandbox(t, func(t *testing.T, sb sandbox.Sandbox) {
				checkNothingLeft(t)
				s := newSpec(t, tt.script)
				s.Devices = tt.devices
				out, code, err := run(t, sb, s)
				if out != tt.want {
					t.Errorf("run(%q) with %v = %q, code %d (%v), want %q", s.Args, tt.devices, out, code, err, tt.want)
				}
			})
		})
	}
}

// TestDevicesWithoutCgroup has no cgroup that could hold a process to a part of
// the access to a device.
func TestDevicesWithoutCgroup(t *testing.T) {
	need(t, "busybox")
	sb := sandbox.NewNative(sandbox.NativeOptions{CgroupRoot: t.TempDir()})
	for access, want := range map[string]string{
		"rwm": "", "rw": "",
		"w":  `access to the device 10:237 cannot be limited to "w": no cgroup version 2 hierarchy`,
		"rm": `access to the device 10:237 cannot be limited to "rm": no cgroup version 2 hierarchy`,
	} {
		checkNothingLeft(t)
		s := newSpec(t, ": <>/dev/control && echo opened; mknod /dev/other c 10 237; : </dev/other")
		s.Devices = []sandbox.Device{{Path: "/dev/control", Mode: unix.S_IFCHR | 0o600, Major: 10, Minor: 237, Access: access}}
		out, code, err := run(t, sb, s)
		if want != "" {
			if out != "" || err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("with access %q: %q, error %v, want %q", access, out, err, want)
			}
			continue
		}
		if want := "opened\n/bin/sh: can't open /dev/other: Permission denied\n"; out != want || code != 1 {
			t.Errorf("with access %q: %q, code %d (%v), want %q", access, out, code, err, want)
		}
	}
}

// TestMaskedUnderOwnDev has a /dev whose null is a link to what is to be masked.
func TestMaskedUnderOwnDev(t *testing.T) {
	need(t, "busybox")
	native := sandbox.NewNative(sandbox.NativeOptions{})
	defer native.Close()
	for _, sb := range []sandbox.Sandbox{native, warmed{native}} {
		checkNothingLeft(t)
		dev := t.TempDir()
		if err := os.Symlink("/proc/timer_list", filepath.Join(dev, "null")); err != nil {
			t.Fatal(err)
		}
		for _, own := range []oci.Mount{
			{Type: "bind", Source: dev, Target: "/dev", Options: []string{"bind"}},
			{Type: "tmpfs", Source: "tmpfs", Target: "/dev"},
		} {
			s := newSpec(t, "cat /proc/timer_list /proc/keys; echo end")
			s.Mounts = []oci.Mount{own}
			if out, code, err := run(t, sb, s); out != "end\n" || code != 0 {
				t.Errorf("with a %s at /dev: %.200q, code %d (%v), want only the end", own.Type, out, code, err)
			}
		}
	}
}
