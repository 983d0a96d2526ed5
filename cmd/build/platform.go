package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/platforms"

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
			if !slices.ContainsFunc(all, platforms.OnlyStrict(p).Match) {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// parsePlatform reads OS/ARCH[/VARIANT], ARCH, or "local" for this machine's.
func parsePlatform(s string) (oci.Platform, error) {
	if s == "local" {
		s = "linux/" + runtime.GOARCH
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return oci.Platform{}, fmt.Errorf("platform %q: want OS/ARCH[/VARIANT], such as linux/arm64: %w", s, err)
	}
	return platforms.Normalize(p), nil
}
