package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/861fb494/build/internal/oci"
)

// parsePlatforms reads lists of platforms and leaves out repetitions.
func parsePlatforms(lists []string) ([]oci.Platform, error) {
	var all []oci.Platform
	for _, list := range lists {
		for word := range strings.SplitSeq(list, ",") {
			p, err := parsePlatform(strings.TrimSpace(word))
			if err != nil {
				return nil, fmt.Errorf("--platform: %w", err)
			}
			if !slices.ContainsFunc(all, func(q oci.Platform) bool {
				return p.OS == q.OS && p.Architecture == q.Architecture && p.Variant == q.Variant
			}) {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// parsePlatform reads OS/ARCH[/VARIANT], ARCH, or "local" for this machine's.
// Architectures are spelled as Go spells them (image-spec, descriptor.md) and
// may be given by their other usual names.
func parsePlatform(s string) (oci.Platform, error) {
	if s == "local" {
		return oci.Platform{OS: "linux", Architecture: runtime.GOARCH}, nil
	}
	bad := func() (oci.Platform, error) {
		return oci.Platform{}, fmt.Errorf("%q is no platform; want OS/ARCH[/VARIANT], such as linux/arm64", s)
	}
	parts := strings.Split(strings.ToLower(s), "/")
	p := oci.Platform{OS: "linux"}
	switch len(parts) {
	case 1:
		p.Architecture = parts[0]
	case 2:
		p.OS, p.Architecture = parts[0], parts[1]
	case 3:
		p.OS, p.Architecture, p.Variant = parts[0], parts[1], parts[2]
	default:
		return bad()
	}
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	case "i386", "i486", "i686":
		p.Architecture = "386"
	}
	switch {
	case p.Architecture == "amd64" && p.Variant == "v1",
		p.Architecture == "arm64" && (p.Variant == "v8" || p.Variant == "8"):
		p.Variant = "" // the ones that go without saying
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	}
	if !slices.Contains([]string{"linux", "windows", "darwin", "freebsd"}, p.OS) || !slices.Contains([]string{
		"amd64", "arm64", "arm", "386", "ppc64le", "ppc64", "s390x", "riscv64", "loong64", "mips64le", "mips64", "mipsle", "mips", "wasm",
	}, p.Architecture) {
		return bad()
	}
	return p, nil
}
