package sandbox_test

import (
	"testing"

	"github.com/861fb494/build/executor/sandbox"
)

// BenchmarkTrue is the time of a step that does nothing, from Start to the end
// of Wait.
func BenchmarkTrue(b *testing.B) {
	need(b, "busybox", "runc", "go")
	for _, bb := range []struct {
		name string
		sb   sandbox.Sandbox
	}{
		{"native", sandbox.NewNative(sandbox.NativeOptions{})},
		{"runc", sandbox.NewOCI("runc", b.TempDir())},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s := newSpec(b, "")
			s.Args = []string{"true"}
			for b.Loop() {
				if _, _, err := run(b, bb.sb, s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
