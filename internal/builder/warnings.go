package builder

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/util/suggest"

	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb/dockerfile"
)

// knowFilter warns of stages to be built without the cache that the Dockerfile has
// not: BuildKit takes any name in silence, and all is cached.
func (j *job) knowFilter() {
	if len(j.Frontend.NoCacheFilter) == 0 || j.Call != "" {
		return
	}
	list, err := dockerfile.ListTargets(j.file)
	if err != nil {
		return // which lowering tells of
	}
	for _, name := range j.Frontend.NoCacheFilter {
		if !slices.ContainsFunc(list.Targets, func(t dockerfile.Target) bool { return strings.EqualFold(t.Name, name) }) {
			j.Sink.Emit(progress.Warning{Message: fmt.Sprintf("--no-cache-filter: the Dockerfile has no stage named %q", name)})
		}
	}
}

// knowArgs warns of build arguments that no ARG declares but one nearly does. Others
// may be for other Dockerfiles: files of arguments and CI give them to all.
func (j *job) knowArgs() {
	if len(j.Frontend.BuildArgs) == 0 || j.Call != "" {
		return
	}
	declared, err := dockerfile.ListArgs(j.file)
	if err != nil {
		return // which lowering tells of
	}
	for _, name := range slices.Sorted(maps.Keys(j.Frontend.BuildArgs)) {
		if slices.Contains(declared, name) {
			continue
		}
		if meant, ok := suggest.Search(name, declared, true); ok && !hasKey(j.Frontend.BuildArgs, meant) {
			j.Sink.Emit(progress.Warning{Message: fmt.Sprintf("--build-arg %s: the Dockerfile has no such ARG (did you mean %s?)", name, meant)})
		}
	}
}

// warn keeps what the linter found of a platform. The others find the same, which is
// said once; what one finds twice is there twice.
func (j *job) warn(list []dockerfile.Warning) {
	known := map[dockerfile.Warning]int{}
	for _, w := range j.warnings {
		known[w]++
	}
	for _, w := range list {
		if known[w]--; known[w] >= 0 {
			continue
		}
		j.warnings = append(j.warnings, w)
		if j.Call == "" {
			j.Sink.Emit(Event(w))
		}
	}
}
