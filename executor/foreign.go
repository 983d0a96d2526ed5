package executor

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// foreign says more of the failure of a program that is for another kind of
// machine and that this one has no emulator for.
func (x *execution) foreign(env []string, err error) error {
	name, head := x.program(env)
	arch := machine(head)
	if arch == "" || runs(runtime.GOARCH, arch) {
		return err
	}
	why := findEmulator(binfmtDir, head).missing(arch)
	if why == "" {
		return err
	}
	return fmt.Errorf("%w: %s is for %s and this machine is %s: %s; or let the stage run here with FROM --platform=$BUILDPLATFORM",
		err, name, arch, runtime.GOARCH, why)
}

// elfHeader is as much of a file as tells the machine that it is for.
const elfHeader = 64

// program is the path of what the step executes, and its first bytes; none if
// it is not there.
func (x *execution) program(env []string) (string, []byte) {
	name := x.op.Args[0]
	candidates := []string{path.Join("/", x.op.Dir, name)}
	if path.IsAbs(name) {
		candidates = []string{name}
	} else if !strings.Contains(name, "/") {
		candidates = nil
		for _, kv := range env {
			if dirs, ok := strings.CutPrefix(kv, "PATH="); ok {
				candidates = nil // the last one counts
				for _, dir := range filepath.SplitList(dirs) {
					candidates = append(candidates, path.Join("/", dir, name))
				}
			}
		}
	}
	for _, c := range candidates {
		at, err := x.draft.Tree.Resolve(c, true)
		if err != nil {
			continue
		}
		f, err := x.draft.Tree.Open(at)
		if err != nil {
			continue
		}
		head := make([]byte, elfHeader)
		n, _ := io.ReadFull(f, head)
		f.Close()
		return c, head[:n]
	}
	return name, nil
}

// machine is the GOARCH that an ELF file is for, "" for other files. One that Go
// has no name for has that of the ELF specification.
func machine(head []byte) string {
	if len(head) < 20 || !bytes.HasPrefix(head, []byte(elf.ELFMAG)) {
		return ""
	}
	var order binary.ByteOrder = binary.LittleEndian
	little := head[elf.EI_DATA] == byte(elf.ELFDATA2LSB)
	if !little {
		order = binary.BigEndian
	}
	m := elf.Machine(order.Uint16(head[18:]))
	switch m {
	case elf.EM_X86_64:
		return "amd64"
	case elf.EM_386:
		return "386"
	case elf.EM_AARCH64:
		return "arm64"
	case elf.EM_ARM:
		return "arm"
	case elf.EM_RISCV:
		return "riscv64"
	case elf.EM_S390:
		return "s390x"
	case elf.EM_LOONGARCH:
		return "loong64"
	case elf.EM_PPC64:
		if little {
			return "ppc64le"
		}
		return "ppc64"
	}
	return m.String()
}

// runs reports whether a machine's own kernel may run programs of arch: some do
// so for the 32-bit ones.
func runs(host, arch string) bool {
	return host == arch || host == "amd64" && arch == "386" || host == "arm64" && arch == "arm"
}

// binfmtDir is where the kernel lists the interpreters of foreign programs
// (Linux, Documentation/admin-guide/binfmt-misc.rst).
const binfmtDir = "/proc/sys/fs/binfmt_misc"

// emulator is what the kernel runs certain programs with.
type emulator struct {
	path     string
	enabled  bool
	fixed    bool // it was opened as it was registered, so it need not be in the root
	unlisted bool // the kernel does not tell what it has
}

// findEmulator is the emulator registered in dir for programs that begin with
// head. One that does not work is returned only if there is no other.
func findEmulator(dir string, head []byte) emulator {
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return emulator{unlisted: true}
	}
	all := strings.TrimSpace(string(status)) == "enabled"
	var found emulator
	entries, err := os.ReadDir(dir)
	if err != nil {
		return emulator{unlisted: true}
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil { // "register" can only be written
			continue
		}
		if h, ok := parseHandler(string(data), head); ok && (found.path == "" || h.enabled && h.fixed) {
			found = h
			found.enabled = found.enabled && all
		}
	}
	return found
}

// parseHandler reads the description of a handler; ok if it is for programs
// that begin with head.
func parseHandler(text string, head []byte) (h emulator, ok bool) {
	var magic, mask []byte
	offset := 0
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		var err error
		switch key {
		case "enabled":
			h.enabled = true
		case "interpreter":
			h.path = value
		case "flags:":
			h.fixed = strings.Contains(value, "F")
		case "offset":
			offset, err = strconv.Atoi(value)
		case "magic":
			magic, err = hex.DecodeString(value)
		case "mask":
			mask, err = hex.DecodeString(value)
		}
		if err != nil {
			return h, false
		}
	}
	if len(magic) == 0 || offset < 0 || offset+len(magic) > len(head) {
		return h, false
	}
	for i, b := range magic {
		m := byte(0xff)
		if i < len(mask) {
			m = mask[i]
		}
		if (head[offset+i]^b)&m != 0 {
			return h, false
		}
	}
	return h, true
}

// missing says what e lacks for programs of arch, and how to get it; "" if
// nothing is.
func (e emulator) missing(arch string) string {
	install := fmt.Sprintf("apt-get install qemu-user-static, or docker run --privileged --rm tonistiigi/binfmt --install %s", arch)
	switch {
	case e.unlisted:
		return fmt.Sprintf("no emulator can be registered, as binfmt_misc is not mounted (mount -t binfmt_misc binfmt_misc %s); then install QEMU's (%s)", binfmtDir, install)
	case e.path == "":
		return fmt.Sprintf("no emulator for it is registered with the kernel; install QEMU's (%s)", install)
	case !e.enabled:
		return fmt.Sprintf("the emulator %s is registered but disabled (enable it: echo 1 >%s/status and the file of its own there)", e.path, binfmtDir)
	case !e.fixed:
		return fmt.Sprintf("the emulator %s is registered without the flag F, so that it would have to be in the image; register it anew (%s)", e.path, install)
	}
	return ""
}
