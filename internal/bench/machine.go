package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is where the figures come from.
type Machine struct {
	CPU        string
	Cores      int
	Memory     int64 // bytes
	Kernel     string
	FileSystem string
	Go         string // the version that this program is built with
}

func (m Machine) String() string {
	return fmt.Sprintf("%s, %d cores, %.1f GB of memory, Linux %s, %s, %s", m.CPU, m.Cores, float64(m.Memory)/1e9, m.Kernel, m.FileSystem, m.Go)
}

// thisMachine describes this one; the file system is that of dir.
func thisMachine(dir string) Machine {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version(), FileSystem: "unknown file system", CPU: runtime.GOARCH}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if name := cpuName(string(text)); name != "" {
			m.CPU = name
		}
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil {
		if known := fileSystems[st.Type]; known != "" {
			m.FileSystem = known
		}
	}
	return m
}

// Of statfs(2).
var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
	unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.F2FS_SUPER_MAGIC: "f2fs",
}

// cpuName reads "model name	: ..." of /proc/cpuinfo, and whether the processor
// has instructions for SHA-256.
func cpuName(text string) string {
	var name string
	sha := "without SHA extensions"
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			name = strings.TrimSpace(value)
		case "flags", "Features":
			for flag := range strings.FieldsSeq(value) {
				if flag == "sha_ni" || flag == "sha2" {
					sha = "with SHA extensions"
				}
			}
		}
	}
	if name == "" {
		return ""
	}
	return name + " " + sha
}
