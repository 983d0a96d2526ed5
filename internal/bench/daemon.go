package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// daemonsAt is the process that listens at a Unix socket's URL, by default
// otherwise, and its descendants that stay, such as containerd. Listening
// elsewhere it is unknown.
func daemonsAt(url, otherwise string) ([]int, error) {
	if url == "" {
		url = otherwise
	}
	path, ok := strings.CutPrefix(url, "unix://")
	if !ok {
		return nil, fmt.Errorf("%s is no Unix socket", url)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	return withChildren(int(cred.Pid)), nil
}

// withChildren is a process and all that descend from it.
func withChildren(pid int) []int {
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		if err != nil {
			continue
		}
		for _, file := range tasks {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // it has ended
			}
			for field := range strings.FieldsSeq(string(text)) {
				if child, err := strconv.Atoi(field); err == nil {
					pids = append(pids, child)
				}
			}
		}
	}
	return pids
}

// openedDir is where one of the processes has a file of that name open, or "".
func openedDir(pids []int, name string) string {
	for _, pid := range pids {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if target, err := os.Readlink(fd); err == nil && filepath.Base(target) == name {
				return filepath.Dir(target)
			}
		}
	}
	return ""
}

// daemonCPU is how many seconds the processes have worked, with their children
// that have ended, to a hundredth.
func daemonCPU(pids []int) float64 {
	var sum float64
	for _, pid := range pids {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
			sum += parseCPU(string(text))
		}
	}
	return sum
}

// parseCPU reads utime, stime, cutime and cstime of /proc/PID/stat; see
// proc_pid_stat(5). The second field, a name in parentheses, may hold anything.
func parseCPU(stat string) float64 {
	end := strings.LastIndexByte(stat, ')')
	if end < 0 {
		return 0
	}
	fields := strings.Fields(stat[end+1:])
	const utime, cstime = 14 - 3, 17 - 3
	if len(fields) <= cstime {
		return 0
	}
	var ticks float64
	for _, f := range fields[utime : cstime+1] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return ticks / 100
}

// forgetPeaks makes the processes' peak memory what they have now.
func forgetPeaks(pids []int) {
	for _, pid := range pids {
		// Failing that, the peak is that of its whole life, and says too much.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
}

// peakMemory is the processes' peaks, added up, in bytes.
func peakMemory(pids []int) int64 {
	var sum int64
	for _, pid := range pids {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
			sum += parsePeak(string(text))
		}
	}
	return sum
}

// parsePeak reads "VmHWM:	   44580 kB" of /proc/PID/status.
func parsePeak(status string) int64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kB, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return kB << 10
		}
	}
	return 0
}
