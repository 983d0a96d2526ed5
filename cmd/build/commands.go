package main

import "github.com/spf13/cobra"

// command is one row of the table of commands. Only the command that is called
// gets constructed, so that start-up does not pay for the others.
type command struct {
	name  string // the word; a command answers to no other
	short string // one line for the list in help
	new   func(*globals) *cobra.Command
}

// commands lists what the first word may be, in the order of the help text.
func commands() []command {
	return []command{
		{"build", "Build an image from a Dockerfile (the word may be left out)", newBuildCommand},
		{"completion", "Print the shell's completion script", newCompletionCommand},
		{"version", "Print the version", newVersionCommand},
	}
}

// lookup is the row of name, or nil.
func lookup(name string) *command {
	table := commands()
	for i := range table {
		if table[i].name == name {
			return &table[i]
		}
	}
	return nil
}
