package builder

import (
	"testing"

	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb/dockerfile"
)

type counting int

func (c *counting) Emit(progress.Event) { *c++ }

// What two platforms find is told once, what one finds twice is told twice.
func TestWarn(t *testing.T) {
	var told counting
	j := &job{Request: Request{Sink: &told}}
	a, b := dockerfile.Warning{Rule: "UndefinedVar", Message: "a"}, dockerfile.Warning{Rule: "UndefinedVar", Message: "b"}
	for _, platform := range [][]dockerfile.Warning{{a, a}, {a, a}, {a, b, a, a}} {
		j.warn(platform)
	}
	if len(j.warnings) != 4 || told != 4 {
		t.Errorf("%d warnings are kept, %d told of, want 4", len(j.warnings), told)
	}
}
