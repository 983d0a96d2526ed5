package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// printHelp prints a command's help on its standard output.
func printHelp(c *cobra.Command, _ []string) {
	w := c.OutOrStdout()
	fmt.Fprintf(w, "%s\n\nUsage:\n  %s\n", strings.TrimSpace(cmp.Or(c.Long, c.Short)), c.UseLine())
	if c.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", strings.TrimRight(c.Example, "\n"))
	}
	if !c.HasParent() {
		printCommands(w)
	}
	own, others := ownFlags(c.LocalNonPersistentFlags())
	if u := usages(own); u != "" {
		fmt.Fprintf(w, "\nOptions:\n%s", u)
	}
	if others {
		fmt.Fprintln(w, "\nThe build's options are taken too: 'build --help' lists them.")
	}
	if u := usages(c.Root().PersistentFlags()); u != "" {
		fmt.Fprintf(w, "\nOptions of every command:\n%s", u)
	}
	if !c.HasParent() {
		fmt.Fprintln(w, "\n'build COMMAND --help' explains a command.")
	}
}

// ownFlags is set without the flags that are the build's and declared again, and
// whether there are such.
func ownFlags(set *pflag.FlagSet) (own *pflag.FlagSet, others bool) {
	own = pflag.NewFlagSet("", pflag.ContinueOnError)
	set.VisitAll(func(f *pflag.Flag) {
		if _, ok := f.Annotations[ofBuild]; ok {
			others = true
			return
		}
		shown := *f
		if f.Value.Type() != "bool" && f.NoOptDefVal != "" {
			name, usage := pflag.UnquoteUsage(f)
			name, _, _ = strings.Cut(name, "[") // what pflag adds
			shown.NoOptDefVal, shown.Usage = "", "`[="+name+"]`"+optionalMark+usage
		}
		own.AddFlag(&shown)
	})
	return own, others
}

// optionalMark ends the placeholder of a value that may be left out, which pflag
// takes out of the text that explains the flag.
const optionalMark = "\x00"

// usages lists the flags of set in a terminal's width. A value that may be left
// out stands close to its flag: "--update[=NAME]".
func usages(set *pflag.FlagSet) string {
	lines := strings.SplitAfter(set.FlagUsagesWrapped(100), "\n")
	for i, l := range lines {
		before, usage, ok := strings.Cut(l, optionalMark)
		if !ok {
			continue
		}
		at := strings.LastIndex(before, "[=")
		head, name, _ := strings.Cut(before[:at], " [=")
		name, gap, _ := strings.Cut(name, "]")
		lines[i] = head + "[=" + name + "] " + gap + usage
	}
	return strings.Join(lines, "")
}

func printCommands(w io.Writer) {
	fmt.Fprintln(w, "\nCommands:")
	for _, row := range commands() {
		fmt.Fprintf(w, "  %-12s %s\n", row.name, row.short)
	}
}
