package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// rmiGrace is how long the blobs of a removed image stay: a build that goes on
// may have looked at them just now.
const rmiGrace = time.Hour

func newRmiCommand(g *globals) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "rmi [flags] IMAGE...",
		Short: "Remove images",
		Long: `Remove names of images, and with the last name the image.

An ID stands for the image with its name; with --force, with all its names.
Cached steps stay.`,
		Args: arguments,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := g.images()
			if err != nil {
				return err
			}
			var failed []error
			var all []image.Named
			for _, name := range args {
				gone, err := removeImage(s, name, force)
				if err != nil && !(force && errors.Is(err, image.ErrNotFound)) {
					failed = append(failed, err)
				}
				all = append(all, gone...)
				for _, n := range gone {
					if n.HasName() {
						fmt.Fprintln(g.stdout, "Untagged:", n.Ref.Familiar())
					}
				}
			}
			return errors.Join(append(failed, reclaim(c.Context(), g, s, all))...)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "remove an image with several names by its ID; ignore what is not there")
	return c
}

// removeImage takes what a user calls name out of the index.
func removeImage(s *image.Store, name string, force bool) ([]image.Named, error) {
	// By its name first: that of a damaged image can be removed too.
	if ref, err := oci.ParseReference(name); err == nil {
		if d, err := s.Get(ref); err == nil {
			return s.Remove(func(n image.Named) bool {
				return n.HasName() && n.Desc.Digest == d.Digest && n.Ref.Repository() == ref.Repository() &&
					(ref.Digest != "" || n.Ref == ref)
			})
		}
	}
	found, err := s.Lookup(name)
	if err != nil {
		return nil, err
	}
	same := func(n image.Named) bool {
		if n.Desc.Digest == found.Desc.Digest {
			return true
		}
		id, err := s.ID(n.Desc)
		return err == nil && id == found.ID
	}
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range list {
		if n.HasName() && same(n) {
			names = append(names, n.Ref.Familiar())
		}
	}
	if len(names) > 1 && !force {
		return nil, fmt.Errorf("image %s has several names: %s; remove these, or use --force", name, strings.Join(names, ", "))
	}
	return s.Remove(same)
}

// reclaim says which images are gone for good, and frees what they took.
func reclaim(ctx context.Context, g *globals, s *image.Store, gone []image.Named) error {
	if len(gone) == 0 {
		return nil
	}
	list, err := s.List()
	if err != nil {
		return err
	}
	left := map[oci.Digest]bool{}
	for _, n := range list {
		left[n.Desc.Digest] = true
	}
	for _, n := range gone {
		if left[n.Desc.Digest] {
			continue
		}
		left[n.Desc.Digest] = true // told once
		if id, err := s.ID(n.Desc); err == nil {
			fmt.Fprintln(g.stdout, "Deleted:", id)
		}
	}
	_, err = s.Reclaim(ctx, gone, rmiGrace)
	return err
}
