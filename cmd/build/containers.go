package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/container"
)

// containers is where those of the state directory are looked at and spoken
// to. To run or to remove some takes what runnable adds.
func (g *globals) containers() (*container.Containers, error) {
	root, err := g.stateDir()
	if err != nil {
		return nil, err
	}
	if err := cache.CheckVersion(root); err != nil {
		return nil, err
	}
	return &container.Containers{Dir: filepath.Join(root, "containers")}, nil
}

// runnable adds to g.containers what b has open.
func (g *globals) runnable(b *builder.Builder) (*container.Containers, error) {
	cs, err := g.containers()
	if err != nil {
		return nil, err
	}
	host := b.Host()
	cs.Snapshots, cs.Sandbox, cs.Networks = b.Store.Driver(), host.Sandbox, host.Networks
	return cs, nil
}

// forEach calls f with each name and prints the name, or the error. What fails
// for one is still done for the others.
func (g *globals) forEach(names []string, f func(string) error) error {
	failed := false
	for _, name := range names {
		if err := f(name); err != nil {
			failed = true
			g.warnf("%v", err)
			continue
		}
		if err := g.println(name); err != nil {
			return err
		}
	}
	if failed {
		return exitStatus(exitFailure)
	}
	return nil
}

// exit passes a container's code on. An error is printed first; where the
// command was interrupted the code of that counts.
func (g *globals) exit(ctx context.Context, code int, err error) error {
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		g.warnf("%s", strings.TrimRight(err.Error(), "\n"))
	}
	if code == 0 {
		return nil
	}
	return exitStatus(code)
}

// warnf prints a line on standard error.
func (g *globals) warnf(format string, args ...any) {
	fmt.Fprintf(g.stderr, "build: "+format+"\n", args...)
}

// println prints a line on standard output.
func (g *globals) println(v any) error {
	_, err := fmt.Fprintln(g.stdout, v)
	return err
}
