package main

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// execute runs the command that args name and returns the exit code.
func execute(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, release := interruptible(context.Background())
	g := &globals{stdin: stdin, stdout: stdout, stderr: stderr, releaseSignals: func() { release() }}
	err := dispatch(ctx, g, args)
	return report(stderr, err, release())
}

// dispatch finds the command, constructs it and no other, and runs it.
func dispatch(ctx context.Context, g *globals, args []string) error {
	name, rest := split(args)
	root := newRoot(g, name)
	root.SetArgs(rest)
	root.SetContext(ctx)

	started := false
	wrap(root, func(run func() error) error {
		started = true
		return g.profile.around(run)
	})
	cmd, err := root.ExecuteC()
	if err != nil && name == "build" {
		err = meantCommand(args, err)
	}
	if err != nil && !started {
		// Unknown options, the wrong number of arguments: what comes before a
		// command's own code runs is the caller's error.
		err = &usageError{err: err}
	}
	var usage *usageError
	if errors.As(err, &usage) && usage.command == "" {
		usage.command = cmd.CommandPath()
	}
	return err
}

// wrap makes around the only caller of the commands' own code.
func wrap(c *cobra.Command, around func(run func() error) error) {
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			return around(func() error { return run(c, args) })
		}
	}
	for _, sub := range c.Commands() {
		wrap(sub, around)
	}
}

// newRoot is the command tree for one call: the build command itself, or a
// bare root with the command called name. For the shell's completion it is all
// of them.
func newRoot(g *globals, name string) *cobra.Command {
	var root *cobra.Command
	completing := false
	switch name {
	case "build":
		root = newBuildCommand(g)
	case cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
		root = newBuildCommand(g)
		for _, row := range commands() {
			root.AddCommand(row.new(g))
		}
		completing = true
	default:
		root = &cobra.Command{Use: "build"}
		root.AddCommand(lookup(name).new(g))
	}
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetIn(g.stdin)
	root.SetOut(g.stdout)
	root.SetErr(g.stderr)
	root.SetHelpFunc(printHelp)
	root.SetFlagErrorFunc(meantOption)
	g.flags(root.PersistentFlags())
	if completing {
		completeAll(g, root)
	}
	return root
}

// split finds the command's name in args, and the arguments for newRoot's tree. Only
// global options may come before it; where the first word is no command's name, or
// another option comes first, the whole line is for the build command. "help push"
// becomes "push --help".
func split(args []string) (name string, rest []string) {
	i := firstWord(args)
	if i < 0 {
		return "build", append([]string{}, args...)
	}
	rest = append(append([]string{}, args[:i]...), args[i+1:]...)
	switch word := args[i]; {
	case word == "help":
		if i := firstWord(rest); i >= 0 && !strings.HasPrefix(rest[i], "-") && lookup(rest[i]) == nil {
			break // the build command's arguments tell of it
		}
		name, rest = split(rest)
		return name, append(rest, "--help")
	case word == "build":
		return word, rest
	case word == "--version":
		return "version", append([]string{"version"}, rest...)
	case word == cobra.ShellCompRequestCmd, word == cobra.ShellCompNoDescRequestCmd:
		return word, args
	case lookup(word) != nil:
		return word, append([]string{word}, rest...)
	}
	return "build", args
}

// firstWord is the index of the first argument that is no global option nor
// the value of one; -1 if there is none, or if "--" says that no command's
// name comes.
func firstWord(args []string) int {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(globals).flags(f)
	for i := 0; i < len(args); i++ {
		name, isLong := strings.CutPrefix(args[i], "--")
		if !isLong {
			return i
		}
		name, _, hasValue := strings.Cut(name, "=")
		option := f.Lookup(name)
		switch {
		case name == "":
			return -1
		case option == nil:
			return i
		case !hasValue && option.NoOptDefVal == "":
			i++
		}
	}
	return -1
}
