package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// arguments counts a command's arguments by its usage: NAME, [NAME] for one that may
// be left out, and "..." after either for more of them.
func arguments(c *cobra.Command, args []string) error {
	least, most := 0, 0
	_, words, _ := strings.Cut(c.Use, " ")
	words = strings.TrimSpace(strings.TrimPrefix(words, "[flags]"))
	for word := range strings.FieldsSeq(words) {
		if !strings.HasPrefix(word, "[") {
			least++
		}
		most++
		if strings.Contains(word, "...") {
			most = len(args)
		}
	}
	switch {
	case len(args) >= least && len(args) <= most:
		return nil
	case words == "":
		return fmt.Errorf("%s takes no arguments, only flags: %q", c.Name(), args)
	case len(args) > most:
		return fmt.Errorf("%s takes %s; given: %q", c.Name(), words, args)
	}
	return fmt.Errorf("%s needs %s; given: %q", c.Name(), words, args)
}
