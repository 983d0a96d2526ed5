package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/861fb494/build/internal/container"
)

// completeAll has the commands say what a shell's completion proposes for their
// arguments and their flags' values. Only completion pays for it.
func completeAll(g *globals, root *cobra.Command) {
	for _, c := range append(root.Commands(), root) {
		if propose, first := argumentsOf(g, c.Name()); propose != nil {
			c.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
				if first && len(args) > 0 {
					return nil, cobra.ShellCompDirectiveDefault
				}
				return propose(args), cobra.ShellCompDirectiveNoFileComp
			}
		}
		for name, words := range flagWords(c.Name()) {
			if c.Flags().Lookup(name) != nil {
				// It fails for a flag that is not there only.
				_ = c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
			}
		}
	}
	_ = root.MarkPersistentFlagDirname("root")
}

// completeContext is for commands whose argument is a build context.
func completeContext(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// argumentsOf is what proposes the arguments of a command, or the first one
// only; nil where files are proposed, or something of the command's own.
func argumentsOf(g *globals, command string) (propose func(args []string) []string, first bool) {
	switch command {
	case "run", "tag":
		return g.imageNames, true
	case "history", "inspect", "push", "rmi", "save":
		return g.imageNames, false
	case "exec":
		return func(args []string) []string { return g.containerNames(args, true) }, true
	case "kill", "stop":
		return func(args []string) []string { return g.containerNames(args, true) }, false
	case "logs", "rm", "wait":
		return func(args []string) []string { return g.containerNames(args, false) }, false
	case "du", "fsck", "images", "load", "login", "logout", "ps", "prune", "pull", "version":
		return func([]string) []string { return nil }, false
	}
	return nil, false
}

// flagWords are the values of a command's flags, where there are few.
func flagWords(command string) map[string][]string {
	words := map[string][]string{
		"compression": {"gzip", "zstd", "uncompressed"},
	}
	switch command {
	case "build", "explain", "lock":
		words["call"] = []string{"build", "check", "outline", "targets"}
		words["network"] = []string{"default", "none", "host"}
		words["progress"] = []string{"auto", "plain", "tty", "quiet", "rawjson"}
		words["storage-driver"] = []string{"auto", "overlay", "plain"}
		words["format"] = []string{"text", "json"} // of explain
	case "run":
		words["network"] = []string{"bridge", "host", "none"}
		words["pull"] = []string{"always", "missing", "never"}
	case "save":
		words["format"] = []string{"oci-dir", "oci", "docker"}
	case "du", "prune":
		words["format"] = []string{"text", "json"}
		words["filter"] = []string{"type=layer", "type=mount", "type=download"}
	case "history", "images", "ps":
		words["format"] = []string{"table", "json"}
	}
	return words
}

// imageNames are those of the images that are here and not among args.
func (g *globals) imageNames(args []string) []string {
	root, err := g.stateDir()
	if err == nil {
		_, err = os.Stat(filepath.Join(root, "images")) // completion makes no directory
	}
	if err != nil {
		return nil
	}
	s, err := g.images()
	if err != nil {
		return nil
	}
	list, _ := s.List() // what cannot be read is not proposed
	var names []string
	for _, n := range list {
		if name := strings.TrimSuffix(n.Ref.Familiar(), ":latest"); n.Ref.Path != "" && !slices.Contains(args, name) {
			names = append(names, name)
		}
	}
	return names
}

// containerNames are those of the containers, or of those that run, that are not
// among args.
func (g *globals) containerNames(args []string, running bool) []string {
	cs, err := g.containers()
	if err != nil {
		return nil
	}
	list, _ := cs.List()
	var names []string
	for _, i := range list {
		if (!running || i.Status == container.Running) && !slices.Contains(args, i.Name) {
			names = append(names, i.Name)
		}
	}
	return names
}
