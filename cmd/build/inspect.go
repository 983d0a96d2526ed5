package main

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// inspected is an image as `docker image inspect` shows it.
type inspected struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Created      *time.Time `json:",omitempty"`
	Author       string     `json:",omitempty"`
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	Size         int64 // bytes, as they are kept: see `build images`
	Config       oci.Config
	RootFS       inspectedRootFS
	Descriptor   oci.Descriptor // of the manifest or index
}

type inspectedRootFS struct {
	Type   string
	Layers []oci.Digest
}

func newInspectCommand(g *globals) *cobra.Command {
	var format, platform string
	var raw, config bool
	c := &cobra.Command{
		Use:   "inspect [flags] IMAGE...",
		Short: "Show all that is known of images, as JSON",
		Args:  arguments,
		RunE: func(_ *cobra.Command, args []string) error {
			p, s, err := g.printing(format)
			if err != nil {
				return err
			}
			var all []any
			var failed []error
			for _, name := range args {
				found, err := g.lookUpFor(s, name, platform)
				if err != nil {
					failed = append(failed, err)
					continue
				}
				switch {
				case raw:
					err = writeBlob(g, s, found.Desc.Digest)
				case config:
					err = writeBlob(g, s, found.ID)
				default:
					var one inspected
					if one, err = inspect(s, found); err == nil {
						all = append(all, one)
					}
				}
				if err != nil {
					failed = append(failed, err)
				}
			}
			if !raw && !config {
				failed = append(failed, printInspected(g, p, all))
			}
			return errors.Join(failed...)
		},
	}
	f := c.Flags()
	f.StringVarP(&format, "format", "f", "", "a Go `TEMPLATE` for each image, such as '{{.Config.Env}}'")
	f.StringVar(&platform, "platform", "", "of an image for several: `OS/ARCH[/VARIANT]`")
	f.BoolVar(&raw, "raw", false, "the bytes of the manifest or index")
	f.BoolVar(&config, "config", false, "the bytes of the configuration")
	c.MarkFlagsMutuallyExclusive("raw", "config", "format")
	return c
}

// printInspected prints a JSON array, or each by the template.
func printInspected(g *globals, p printer, all []any) error {
	if p.tmpl == nil {
		if all == nil {
			all = []any{} // scripts read an array even where nothing was found
		}
		e := json.NewEncoder(g.stdout)
		e.SetEscapeHTML(false)
		e.SetIndent("", "    ")
		return e.Encode(all)
	}
	for _, one := range all {
		if err := p.print(g.stdout, one); err != nil {
			return err
		}
	}
	return nil
}

// lookUpFor finds an image, and of one for several platforms the wanted; empty
// is this machine's.
func (g *globals) lookUpFor(s *image.Store, name, platform string) (image.Found, error) {
	found, err := g.lookUp(s, name)
	if err != nil || platform == "" {
		return found, err
	}
	want, err := onePlatform(platform)
	if err != nil {
		return found, err
	}
	if found.Desc, err = s.Select(found.Desc, want); err != nil {
		return found, err
	}
	found.ID, err = s.ID(found.Desc)
	return found, err
}

// onePlatform reads the value of a --platform that takes no list.
func onePlatform(s string) (oci.Platform, error) {
	list, err := parsePlatforms([]string{s})
	switch {
	case err != nil:
		return oci.Platform{}, &usageError{err: err}
	case len(list) != 1:
		return oci.Platform{}, usagef("--platform %q: want one", s)
	}
	return list[0], nil
}

func writeBlob(g *globals, s *image.Store, d oci.Digest) error {
	data, err := s.Read(d)
	if err == nil {
		_, err = g.stdout.Write(data)
	}
	return err
}

func inspect(s *image.Store, found image.Found) (inspected, error) {
	i, err := readImage(s, found.Desc)
	if err != nil {
		return inspected{}, err
	}
	one := inspected{
		ID: i.id.String(), RepoTags: []string{}, RepoDigests: []string{},
		Created: i.config.Created, Author: i.config.Author,
		Architecture: i.config.Architecture, Variant: i.config.Variant, Os: i.config.OS,
		Size: i.size, Config: i.config.Config,
		RootFS:     inspectedRootFS{Type: i.config.RootFS.Type, Layers: i.config.RootFS.DiffIDs},
		Descriptor: found.Desc,
	}
	list, err := s.List()
	if err != nil {
		return one, err
	}
	seen := map[string]bool{}
	for _, n := range list {
		id, err := s.ID(n.Desc)
		if err != nil || id != i.id || !n.HasName() {
			continue
		}
		if n.Ref.Tag != "" {
			one.RepoTags = append(one.RepoTags, n.Ref.Familiar())
		}
		at := familiarRepository(n.Ref) + "@" + n.Desc.Digest.String()
		if !seen[at] {
			seen[at] = true
			one.RepoDigests = append(one.RepoDigests, at)
		}
	}
	return one, nil
}
