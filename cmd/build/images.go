package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// images opens the image store of the state directory and nothing else of it.
func (g *globals) images() (*image.Store, error) {
	root, err := g.stateDir()
	if err != nil {
		return nil, err
	}
	if err := cache.CheckVersion(root); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("open state directory: %w (choose another with --root)", err)
	}
	return image.Open(filepath.Join(root, "images"))
}

// lookUp finds an image in s. Where name is that of what a build without a name came
// to, the error says how it gets one.
func (g *globals) lookUp(s *image.Store, name string) (image.Found, error) {
	found, err := s.Lookup(name)
	if errors.Is(err, image.ErrNotFound) {
		if root, rerr := g.stateDir(); rerr == nil && cache.HasResult(root, name) {
			err = fmt.Errorf("%w: what a build came to without a name is no image yet, 'build tag %s NAME' makes it one", err, name)
		}
	}
	return found, err
}

// imageRow is a line of `build images`. Its fields are those of Docker's
// templates.
type imageRow struct {
	Repository   string
	Tag          string
	Digest       string
	ID           string
	CreatedAt    string
	CreatedSince string
	Size         string

	created time.Time
}

// none stands for a repository, tag or digest that is not there.
const none = "<none>"

func newImagesCommand(g *globals) *cobra.Command {
	var format string
	var quiet, digests, whole bool
	c := &cobra.Command{
		Use:   "images [flags] [REPOSITORY[:TAG]]",
		Short: "List images",
		Long: `List the images that are here, the newest first.

REPOSITORY may have wildcards: "team/*". SIZE is that of an image's layers as
they are kept: of those built here uncompressed, of those pulled compressed.`,
		Args: arguments,
		RunE: func(c *cobra.Command, args []string) error {
			p, s, err := g.printing(format)
			if err != nil {
				return err
			}
			rows, err := imageRows(s, slices.Concat(args, []string{""})[0], time.Now(), !whole)
			if err != nil {
				return err
			}
			if quiet {
				return printIDs(g, rows)
			}
			columns := []column[imageRow]{
				{"REPOSITORY", func(r imageRow) string { return r.Repository }},
				{"TAG", func(r imageRow) string { return r.Tag }},
				{"DIGEST", func(r imageRow) string { return r.Digest }},
				{"IMAGE ID", func(r imageRow) string { return r.ID }},
				{"CREATED", func(r imageRow) string { return r.CreatedSince }},
				{"SIZE", func(r imageRow) string { return r.Size }},
			}
			if !digests {
				columns = slices.Delete(columns, 2, 3)
			}
			return printRows(g.stdout, p, columns, rows)
		},
	}
	f := c.Flags()
	f.StringVar(&format, "format", "table", "table, json, or a Go `TEMPLATE`, such as '{{.ID}}'")
	f.BoolVarP(&quiet, "quiet", "q", false, "IDs alone")
	f.BoolVar(&digests, "digests", false, "show digests")
	f.BoolVar(&whole, "no-trunc", false, "do not shorten IDs")
	return c
}

// printIDs prints each ID once.
func printIDs(g *globals, rows []imageRow) error {
	seen := map[string]bool{}
	for _, r := range rows {
		if seen[r.ID] {
			continue
		}
		seen[r.ID] = true
		if _, err := fmt.Fprintln(g.stdout, r.ID); err != nil {
			return err
		}
	}
	return nil
}

// imageRows lists the images that pattern, if not empty, matches.
func imageRows(s *image.Store, pattern string, now time.Time, short bool) ([]imageRow, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	var rows []imageRow
	for _, n := range list {
		r := imageRow{Repository: none, Tag: none, Digest: n.Desc.Digest.String()}
		if n.HasName() {
			r.Repository = familiarRepository(n.Ref)
			r.Tag = cmp.Or(n.Ref.Tag, none)
		}
		if pattern != "" && !matchesName(pattern, n.Ref, r) {
			continue
		}
		if err := r.describe(s, n.Desc, now, short); err != nil {
			// One damaged image does not hide the others.
			r.ID, r.CreatedSince, r.Size = "<damaged>", err.Error(), "-"
		}
		rows = append(rows, r)
	}
	slices.SortStableFunc(rows, func(a, b imageRow) int {
		return cmp.Or(b.created.Compare(a.created), cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Tag, b.Tag))
	})
	return rows, nil
}

func familiarRepository(ref oci.Reference) string {
	return oci.Reference{Domain: ref.Domain, Path: ref.Path}.Familiar()
}

// matchesName reports whether a name is what a user's pattern means: the
// repository, with or without tag, in full or as Docker shortens it.
func matchesName(pattern string, ref oci.Reference, r imageRow) bool {
	for _, name := range []string{r.Repository, r.Repository + ":" + r.Tag, ref.Repository(), ref.String()} {
		if ok, err := path.Match(pattern, name); err == nil && ok {
			return true
		}
	}
	return false
}

func (r *imageRow) describe(s *image.Store, d oci.Descriptor, now time.Time, short bool) error {
	one, err := readImage(s, d)
	if err != nil {
		return err
	}
	r.ID = one.id.String()
	if short {
		r.ID = shortID(one.id)
	}
	r.Size = units.HumanSizeWithPrecision(float64(one.size), 3)
	if t := one.config.Created; t != nil {
		r.created = *t
		r.CreatedAt = t.Format(time.RFC3339)
	}
	r.CreatedSince = since(r.created, now)
	return nil
}

// since is a time in words; "N/A" of none.
func since(t, now time.Time) string {
	if t.IsZero() {
		return "N/A"
	}
	return units.HumanDuration(now.Sub(t)) + " ago"
}

func shortID(d oci.Digest) string { return d.Encoded()[:12] }

// localImage is an image of the store, for this machine's platform if it has
// several.
type localImage struct {
	id       oci.Digest
	desc     oci.Descriptor // of the manifest
	manifest oci.Manifest
	config   oci.Image
	size     int64 // bytes, of configuration and layers as they are kept
}

func readImage(s *image.Store, d oci.Descriptor) (localImage, error) {
	var i localImage
	var err error
	if i.desc, err = s.Main(d); err != nil {
		return i, err
	}
	if i.manifest, err = s.Manifest(i.desc.Digest); err != nil {
		return i, err
	}
	if i.config, err = s.Config(i.manifest.Config.Digest); err != nil {
		return i, err
	}
	i.id = i.manifest.Config.Digest
	i.size = i.manifest.Config.Size
	for _, l := range i.manifest.Layers {
		i.size += l.Size
	}
	return i, nil
}
