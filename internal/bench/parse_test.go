package main

import (
	"slices"
	"testing"
)

func TestParseBusy(t *testing.T) {
	for _, tt := range []struct {
		text string
		want float64
	}{
		{"cpu  100 20 30 5000 600 7 8 35 900 90\ncpu0 1 1 1 1\n", 2},
		{"", 0},
		{"cpu x\n", 0},
	} {
		if got := parseBusy(tt.text); got != tt.want {
			t.Errorf("parseBusy(%q) = %v, want %v", tt.text, got, tt.want)
		}
	}
}

func TestParseCPU(t *testing.T) {
	for _, tt := range []struct {
		stat string
		want float64
	}{
		{"42 (buildkitd) S 1 42 42 0 -1 4194560 1 2 3 4 100 50 30 20 20 0 9 0 77 1 1", 2},
		{"42 (a) b) (c) S 1 42 42 0 -1 4194560 1 2 3 4 100 50 30 20 20 0 9 0 77 1 1", 2},
		{"42 (x) S 1", 0},
		{"", 0},
	} {
		if got := parseCPU(tt.stat); got != tt.want {
			t.Errorf("parseCPU(%q) = %v, want %v", tt.stat, got, tt.want)
		}
	}
}

func TestParsePeak(t *testing.T) {
	for _, tt := range []struct {
		status string
		want   int64
	}{
		{"Name:\tx\nVmHWM:\t   44580 kB\nVmRSS:\t   1 kB\n", 44580 << 10},
		{"Name:\tkthreadd\n", 0},
	} {
		if got := parsePeak(tt.status); got != tt.want {
			t.Errorf("parsePeak(%q) = %v, want %v", tt.status, got, tt.want)
		}
	}
}

func TestWorkerVersion(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"ID:\t\tabc\nBuildKit:\tgithub.com/moby/buildkit v0.32.0 0123\nDockerfile:\t1.26.0\n", "v0.32.0"},
		{"ID:\tabc\n", "unknown"},
	} {
		if got := workerVersion(tt.text); got != tt.want {
			t.Errorf("workerVersion(%q) = %q, want %q", tt.text, got, tt.want)
		}
	}
}

func TestMountsBelow(t *testing.T) {
	mounts := "overlay /s overlay rw 0 0\noverlay /s/a overlay rw 0 0\nshm /s/a/b tmpfs rw 0 0\noverlay /sat overlay rw 0 0\n"
	if got, want := mountsBelow(mounts, "/s"), []string{"/s/a", "/s/a/b"}; !slices.Equal(got, want) {
		t.Errorf("mountsBelow(%q, /s) = %q, want %q", mounts, got, want)
	}
}

func TestCPUName(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sha_ni vme\n", "Some CPU with SHA extensions"},
		{"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu\n", "Some CPU without SHA extensions"},
		{"", ""},
	} {
		if got := cpuName(tt.text); got != tt.want {
			t.Errorf("cpuName(%q) = %q, want %q", tt.text, got, tt.want)
		}
	}
}
