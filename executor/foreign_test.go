package executor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// header is the beginning of an ELF file: class and byte order, machine.
func header(order byte, low, high byte) []byte {
	h := make([]byte, elfHeader)
	copy(h, "\x7fELF\x02")
	h[5], h[6], h[16], h[18], h[19] = order, 1, 2, low, high
	return h
}

func TestMachine(t *testing.T) {
	for _, tt := range []struct {
		name string
		head []byte
		want string
	}{
		{"amd64", header(1, 62, 0), "amd64"},
		{"arm64", header(1, 183, 0), "arm64"},
		{"s390x, the other byte order", header(2, 0, 22), "s390x"},
		{"ppc64", header(2, 0, 21), "ppc64"},
		{"ppc64le", header(1, 21, 0), "ppc64le"},
		{"one without a name in Go", header(2, 0, 2), "EM_SPARC"},
		{"a script", []byte("#!/bin/sh\nthat is longer than a header"), ""},
		{"cut short", []byte("\x7fELF"), ""},
		{"nothing", nil, ""},
	} {
		if got := machine(tt.head); got != tt.want {
			t.Errorf("machine(%s) = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestEmulator(t *testing.T) {
	const (
		magic = "magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
		good  = "enabled\ninterpreter /usr/bin/qemu-aarch64\nflags: OCF\noffset 0\n" + magic
	)
	arm := header(1, 183, 0)
	for _, tt := range []struct {
		name  string
		files map[string]string
		head  []byte
		want  string // in what is missing; "" if nothing is
	}{
		{"not mounted", nil, arm, "binfmt_misc is not mounted"},
		{"none", map[string]string{"status": "enabled\n"}, arm, "no emulator for it is registered"},
		{"registered", map[string]string{"status": "enabled\n", "qemu-aarch64": good}, arm, ""},
		{"for another machine", map[string]string{"status": "enabled\n", "qemu-aarch64": good}, header(1, 243, 0), "no emulator for it is registered"},
		{"disabled", map[string]string{"status": "enabled\n", "qemu-aarch64": strings.Replace(good, "enabled", "disabled", 1)}, arm, "is registered but disabled"},
		{"all disabled", map[string]string{"status": "disabled\n", "qemu-aarch64": good}, arm, "is registered but disabled"},
		{"to be in the image", map[string]string{"status": "enabled\n", "qemu-aarch64": strings.Replace(good, "OCF", "OC", 1)}, arm, "without the flag F"},
		{"two", map[string]string{"status": "enabled\n", "a": strings.Replace(good, "OCF", "OC", 1), "b": good, "c": strings.Replace(good, "OCF", "", 1)}, arm, ""},
		{"by extension", map[string]string{"status": "enabled\n", "jar": "enabled\ninterpreter /usr/bin/java\nflags: F\nextension .jar\n"}, arm, "no emulator for it is registered"},
		{"damaged", map[string]string{"status": "enabled\n", "x": "enabled\nmagic zz\n"}, arm, "no emulator for it is registered"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got := findEmulator(dir, tt.head).missing("arm64")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("findEmulator(%q).missing = %q, want %q in it", tt.files, got, tt.want)
			}
		})
	}
}
