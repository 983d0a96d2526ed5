package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/platforms"

	"github.com/861fb494/build/internal/oci"
)

// parsePlatforms reads lists of OS/ARCH[/VARIANT], ARCH, or "local" for this
// machine's platform, and leaves out repetitions.
func parsePlatforms(lists []string) ([]oci.Platform, error) {
	var all []oci.Platform
	for _, list := range lists {
		for word := range strings.SplitSeq(list, ",") {
			if word = strings.TrimSpace(word); word == "local" {
				word = "linux/" + runtime.GOARCH
			}
			p, err := platforms.Parse(word)
			if err != nil {
				return nil, fmt.Errorf("--platform %q: want OS/ARCH[/VARIANT], such as linux/arm64: %w", word, err)
			}
			p = platforms.Normalize(p)
			if !slices.ContainsFunc(all, platforms.OnlyStrict(p).Match) {
				all = append(all, p)
			}
		}
	}
	return all, nil
}
