package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/container"
)

func newRunCommand(g *globals) *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND] [ARG...]",
		Short: "Run a container of an image",
		Long: `Run a container of an image, which is pulled if it is not here.

The container's exit code is passed on. 125 says that it could not be run, 126
that its command cannot be executed, 127 that there is no such command. Ctrl-C
stops it by its stop signal; a second one kills it.`,
		Example: `  build run --rm alpine date
  build run -it --rm -v .:/src -w /src golang sh
  build run -d --name web -p 8080:80 nginx`,
		Args: func(c *cobra.Command, args []string) error {
			return g.cannotRun(arguments(c, args))
		},
		RunE: func(c *cobra.Command, args []string) error {
			if o.shim {
				return runShim(c.Context(), g, args[0])
			}
			wanted, err := o.container(args[1:])
			if err != nil {
				return g.cannotRun(err)
			}
			return o.run(c.Context(), g, args[0], wanted)
		},
	}
	o.declare(c.Flags())
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return g.cannotRun(meantOption(c, err)) })
	return c
}

// cannotRun tells of an error in the command line. Its exit code is not that of
// other commands: a container's own code may be 2.
func (g *globals) cannotRun(err error) error {
	if err == nil || errors.Is(err, pflag.ErrHelp) {
		return err
	}
	g.warnf("%v\nSee 'build run --help'.", err)
	return exitStatus(container.CodeFailed)
}

// run makes a container and runs it, here or in a shim.
func (o *runOptions) run(ctx context.Context, g *globals, image string, wanted container.Options) (err error) {
	if o.hostPorts() {
		g.warnf("published ports have no effect with --network host: the container's ports are the host's")
		wanted.Network.Ports = nil
	}
	var streams container.Streams
	if !o.detach {
		if streams, err = g.streams(o.tty, o.interactive); err != nil {
			return err
		}
	}
	if err := needsRoot(); err != nil {
		return g.exit(ctx, container.CodeFailed, err)
	}
	b, err := g.open(ctx, "", o.runtime)
	if err != nil {
		return g.exit(ctx, container.CodeFailed, err)
	}
	defer func() { err = errors.Join(err, b.Close(ctx)) }()
	code, err := o.runIn(ctx, g, b, image, wanted, streams)
	return g.exit(ctx, code, err)
}

func (o *runOptions) runIn(ctx context.Context, g *globals, b *builder.Builder, image string, wanted container.Options, streams container.Streams) (int, error) {
	cs, err := g.runnable(b)
	if err != nil {
		return container.CodeFailed, err
	}
	img, err := g.runImage(ctx, b, image, o.pull)
	if err != nil {
		return container.CodeFailed, err
	}
	c, err := cs.Create(ctx, img, wanted)
	if err != nil {
		return container.CodeFailed, err
	}
	defer c.Close()
	if o.detach {
		root, err := g.stateDir()
		if err != nil {
			return container.CodeFailed, err
		}
		args := []string{"--root", root, "run", "--shim"}
		if o.runtime != "" {
			args = append(args, "--oci-runtime", o.runtime)
		}
		if code, err := cs.Detach(ctx, c, append(args, c.ID)); err != nil {
			return code, err
		}
		return 0, g.println(c.ID)
	}
	// From here on signals are the container's.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	// A closed standard output ends the container, not us before we have cleaned up.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	g.releaseSignals()
	if ctx.Err() != nil {
		return container.CodeFailed, errors.Join(ctx.Err(), cs.Abandon(c))
	}
	streams.Signals = signals
	return cs.Supervise(context.WithoutCancel(ctx), c, streams)
}

// passedOn are the signals that a container gets instead of us.
var passedOn = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}

// runShim is what a detached container's supervisor runs.
func runShim(ctx context.Context, g *globals, id string) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	g.releaseSignals()
	return g.withBuilder(context.WithoutCancel(ctx), func(b *builder.Builder) error {
		cs, err := g.runnable(b)
		if err != nil {
			return err
		}
		return cs.Shim(context.WithoutCancel(ctx), id, signals)
	})
}

// streams are ours, for a process that has a terminal or not.
func (g *globals) streams(tty, interactive bool) (container.Streams, error) {
	s := container.Streams{Out: g.stdout, Err: g.stderr}
	if interactive {
		s.In = g.stdin
	}
	if !tty {
		return s, nil
	}
	f, ok := g.stdin.(*os.File)
	if isTerminal := ok && term.IsTerminal(int(f.Fd())); isTerminal {
		s.Terminal = f
	} else if interactive {
		return s, errors.New("--tty --interactive need a terminal as standard input: leave --tty out")
	}
	return s, nil
}
