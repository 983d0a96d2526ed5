package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
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
	if u := c.LocalNonPersistentFlags().FlagUsagesWrapped(100); u != "" {
		fmt.Fprintf(w, "\nOptions:\n%s", u)
	}
	if u := c.Root().PersistentFlags().FlagUsagesWrapped(100); u != "" {
		fmt.Fprintf(w, "\nOptions of every command:\n%s", u)
	}
	if !c.HasParent() {
		fmt.Fprintln(w, "\n'build COMMAND --help' explains a command.")
	}
}

func printCommands(w io.Writer) {
	fmt.Fprintln(w, "\nCommands:")
	for _, row := range commands() {
		fmt.Fprintf(w, "  %-12s %s\n", row.name, row.short)
	}
}
