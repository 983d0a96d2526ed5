package main

import (
	"errors"
	"fmt"
	"path"
)

// hand is a case carried out by hand: what came of it, or why it failed.
type hand struct {
	system *system
	tree   Tree
	failed error
}

// byHand carries c out in dir, a directory to be made.
func (f *fuzzer) byHand(c *Case, dir string) (*hand, error) {
	s, err := interpret(withIgnoreFile(c), dir, f.common)
	if err != nil {
		return &hand{failed: err}, nil
	}
	t, err := readTree(s.root)
	return &hand{system: s, tree: t}, err
}

// hangs reports whether a script waits for ever, as for the other end of a named
// pipe: such a case is not to be built.
func (h *hand) hangs() bool { return errors.Is(h.failed, errHangs) }

// against compares a build of c with it.
func (h *hand) against(c *Case, o outcome) *finding {
	switch {
	case h.failed != nil && o.image != nil:
		return &finding{"failure plain", "by hand it fails: " + h.failed.Error()}
	case h.failed != nil:
		return nil
	case o.image == nil:
		return &finding{"failure plain", "by hand it works:\n" + o.log}
	}
	d := differences(o.image.Flat, h.tree, c.loose(false))
	for k, want := range map[string]string{"User": h.system.user, "WorkingDir": h.system.workdir} {
		if got, _ := o.image.Config[k].(string); path.Clean("/"+got) != path.Clean("/"+want) {
			d = append(d, fmt.Sprintf("config %s: %q against %q", k, got, want))
		}
	}
	if len(d) > 0 {
		return &finding{"plain", "build against by hand:\n" + clip(d)}
	}
	return nil
}
