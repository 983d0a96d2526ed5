package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkStartup measures how long `build version` takes beside a Go program
// that only prints a line: x-bare is the ratio of the two.
func BenchmarkStartup(b *testing.B) {
	dir := b.TempDir()
	source := filepath.Join(dir, "bare.go")
	if err := os.WriteFile(source, []byte("package main\n\nimport \"os\"\n\nfunc main() { os.Stdout.WriteString(\"bare\\n\") }\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	bare, product := filepath.Join(dir, "bare"), filepath.Join(dir, "build")
	for program, from := range map[string]string{bare: source, product: "."} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, from)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("go build %s: %v\n%s", from, err, out)
		}
	}
	run := func(args ...string) time.Duration {
		start := time.Now()
		if err := exec.Command(args[0], args[1:]...).Run(); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	var ours, bares time.Duration
	for b.Loop() {
		// In turns, so that both meet the same noise.
		bares += run(bare)
		ours += run(product, "version")
	}
	b.ReportMetric(float64(bares.Microseconds())/float64(b.N), "µs/bare")
	b.ReportMetric(float64(ours.Microseconds())/float64(b.N), "µs/version")
	b.ReportMetric(float64(ours)/float64(bares), "x-bare")
}
