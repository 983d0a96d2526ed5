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
		{"du", "Say what takes room in the state directory", newDuCommand},
		{"exec", "Run a further command in a running container", newExecCommand},
		{"explain", "Say which steps of a build are cached, which are not, and why", newExplainCommand},
		{"fsck", "Check all that is in the state directory", newFsckCommand},
		{"history", "Show the steps that an image was made by", newHistoryCommand},
		{"images", "List images", newImagesCommand},
		{"inspect", "Show all that is known of images, as JSON", newInspectCommand},
		{"kill", "Send containers a signal", newKillCommand},
		{"load", "Read images from an archive", newLoadCommand},
		{"lock", "Write down what the Dockerfile's tags, URLs and branches are", newLockCommand},
		{"login", "Log in to a registry", newLoginCommand},
		{"logout", "Log out from a registry", newLogoutCommand},
		{"logs", "Print what a container has written", newLogsCommand},
		{"prune", "Remove what is no longer needed from the state directory", newPruneCommand},
		{"ps", "List containers", newPsCommand},
		{"pull", "Download an image", newPullCommand},
		{"push", "Upload an image to a registry", newPushCommand},
		{"rm", "Remove containers", newRmCommand},
		{"rmi", "Remove images", newRmiCommand},
		{"run", "Run a container of an image", newRunCommand},
		{"save", "Write images to an archive or a directory", newSaveCommand},
		{"stop", "Stop containers", newStopCommand},
		{"tag", "Give an image a name", newTagCommand},
		{"version", "Print the version", newVersionCommand},
		{"wait", "Wait for containers to end and print their exit codes", newWaitCommand},
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
