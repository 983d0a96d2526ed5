package main

import (
	"fmt"
	"os"
	"runtime/pprof"
	"runtime/trace"

	"github.com/spf13/pflag"
)

// profile writes what Go's tools read about a run: hidden options for those
// who work on build itself.
type profile struct {
	cpu, trace string // files to write; "": none
}

func (p *profile) flags(f *pflag.FlagSet) {
	f.StringVar(&p.cpu, "cpuprofile", "", "write a CPU profile to `file`")
	f.StringVar(&p.trace, "trace", "", "write an execution trace to `file`")
	for _, name := range []string{"cpuprofile", "trace"} {
		f.Lookup(name).Hidden = true
	}
}

// around calls run while the profiles that were asked for are taken.
func (p *profile) around(run func() error) error {
	if p.cpu != "" {
		f, err := os.Create(p.cpu)
		if err != nil {
			return fmt.Errorf("--cpuprofile: %w", err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return fmt.Errorf("--cpuprofile: %w", err)
		}
		defer pprof.StopCPUProfile()
	}
	if p.trace != "" {
		f, err := os.Create(p.trace)
		if err != nil {
			return fmt.Errorf("--trace: %w", err)
		}
		defer f.Close()
		if err := trace.Start(f); err != nil {
			return fmt.Errorf("--trace: %w", err)
		}
		defer trace.Stop()
	}
	return run()
}
