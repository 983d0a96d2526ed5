package main

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

func newTagCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "tag [flags] IMAGE NAME...",
		Short: "Give an image a name",
		Long: `Give an image one more name, or several.

IMAGE is a name, an ID or the beginning of one. It may also be what a build
without --tag printed.`,
		Args: arguments,
		RunE: func(c *cobra.Command, args []string) error {
			names, err := parseNames(args[1:])
			if err != nil {
				return err
			}
			s, err := g.images()
			if err != nil {
				return err
			}
			found, err := s.Lookup(args[0])
			if errors.Is(err, image.ErrNotFound) && hexadecimal(args[0]) {
				return tagResult(c, g, args[0], names, err)
			}
			if err != nil {
				return err
			}
			for _, n := range names {
				if err := s.Set(n, found.Desc); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// tagResult names what a build without a name left in the cache; missing is the
// error if there is none of that ID either.
func tagResult(c *cobra.Command, g *globals, id string, names []oci.Reference, missing error) error {
	b, err := g.open(c.Context(), "", "")
	if err != nil {
		return err
	}
	err = b.Tag(c.Context(), id, names...)
	if errors.Is(err, fs.ErrNotExist) {
		err = missing
	}
	return errors.Join(err, b.Close(c.Context()))
}

// parseNames reads names that an image is to have. A digest is not for the user
// to choose.
func parseNames(list []string) ([]oci.Reference, error) {
	var names []oci.Reference
	for _, s := range list {
		ref, err := oci.ParseReference(s)
		if err != nil {
			return nil, err
		}
		if ref.Digest != "" {
			return nil, usagef("%s: a name to be given has no digest", s)
		}
		names = append(names, ref)
	}
	return names, nil
}

// hexadecimal reports whether s may be an ID, or the beginning of one.
func hexadecimal(s string) bool {
	if _, after, ok := strings.Cut(s, ":"); ok {
		s = after
	}
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}
