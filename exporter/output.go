package exporter

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tonistiigi/go-csvvalue"

	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/oci"
)

// Types of output.
const (
	TypeImage    = "image"    // the local image store, and with push=true a registry
	TypeRegistry = "registry" // a registry alone
	TypeOCI      = "oci"      // an OCI image layout, in a tar or a directory
	TypeDocker   = "docker"   // a tar for docker load
	TypeLocal    = "local"    // the root filesystem, in a directory
	TypeTar      = "tar"      // the root filesystem, in a tar
)

// Output is what one --output asks for.
type Output struct {
	Type string
	// Dest is a file or directory; "-" is standard output.
	Dest string
	// Attrs is what else was said, by its name: see ParseOutput.
	Attrs map[string]string
}

// ParseOutput reads the value of --output, as docker buildx has it:
// comma-separated name=value, quoted as in CSV. Without any "=" it is a
// directory for type=local, or "-" for a tar on standard output. Names:
//
//	type, dest         see Output; type=docker without dest is type=image
//	tar                type=oci: false for a directory
//	name               more names, separated by commas
//	push               type=image: true to push it too
//	push-by-digest     push without a tag
//	compression, compression-level, force-compression
//	oci-mediatypes     false for Docker's media types
//	rewrite-timestamp  see Output.RewriteTimestamp
//	annotation.KEY, annotation-manifest.KEY, annotation-index.KEY
func ParseOutput(s string) (Output, error) {
	fail := func(err error) (Output, error) { return Output{}, fmt.Errorf("output %q: %w", s, err) }
	if s == "" {
		return fail(errors.New("empty"))
	}
	fields, err := csvvalue.Fields(s, nil)
	if err != nil {
		return fail(err)
	}
	if len(fields) == 1 && !strings.Contains(fields[0], "=") {
		if fields[0] == "-" {
			return Output{Type: TypeTar, Dest: "-"}, nil
		}
		return Output{Type: TypeLocal, Dest: fields[0]}, nil
	}
	out := Output{Attrs: map[string]string{}}
	for _, f := range fields {
		name, value, ok := strings.Cut(f, "=")
		if !ok {
			return fail(fmt.Errorf("%q is not name=value", f))
		}
		switch name = strings.TrimSpace(name); strings.ToLower(name) {
		case "type":
			out.Type = value
		case "dest":
			out.Dest = value
		default:
			if _, twice := out.Attrs[name]; twice {
				return fail(fmt.Errorf("%s is given twice", name))
			}
			out.Attrs[name] = value
		}
	}
	switch {
	case out.Type == "":
		return fail(errors.New("type is missing: image, registry, oci, docker, local or tar"))
	case out.Type == TypeDocker && out.Dest == "":
		out.Type = TypeImage // with Docker it is put where `docker run` finds it
	}
	if _, err := out.attributes(); err != nil {
		return Output{}, err
	}
	return out, nil
}

// RewriteTimestamp reports whether the output asks for an image whose layers have
// no file that is later than SOURCE_DATE_EPOCH; base images stay as they are.
// Its layers are to be handed over so: see oci.Layer.Epoch.
func (out Output) RewriteTimestamp() bool {
	a, err := out.attributes()
	return err == nil && a.rewrite
}

// attributes are an Output's Attrs, read.
type attributes struct {
	names               []oci.Reference
	tar                 bool
	push                bool
	byDigest            bool
	method              compress.Method
	force               bool
	docker              bool // media types
	rewrite             bool // times of files
	manifestAnnotations map[string]string
	indexAnnotations    map[string]string
}

// Pushes reports whether the result goes to a registry.
func (out Output) Pushes() bool {
	a, err := out.attributes()
	return err == nil && (out.Type == TypeRegistry || a.push || a.byDigest)
}

// Validate finds what makes no sense, whatever is built and wherever; tags are the
// names that the build gives.
func (out Output) Validate(tags []oci.Reference) error {
	a, err := out.attributes()
	if err == nil && (a.push || a.byDigest) && len(a.names)+len(tags) == 0 {
		err = fmt.Errorf("output type=%s: the image has no name to push it to: give it one with --tag or name=", out.Type)
	}
	return err
}

// attributes checks the Output as a whole.
func (out Output) attributes() (attributes, error) {
	a := attributes{tar: true, manifestAnnotations: map[string]string{}, indexAnnotations: map[string]string{}}
	fail := func(format string, args ...any) (attributes, error) {
		return a, fmt.Errorf("output type=%s: %w", out.Type, fmt.Errorf(format, args...))
	}
	switch out.Type {
	case TypeOCI, TypeDocker, TypeLocal, TypeTar:
		if out.Dest == "" {
			return fail("dest is missing: a path, or - for standard output")
		}
	case TypeImage, TypeRegistry:
		if out.Dest != "" {
			return fail("it has no dest; its names come from --tag or name=")
		}
	default:
		return fail("not known: use image, registry, oci, docker, local or tar")
	}
	compression, level := "", (*int)(nil)
	ociTypes := true
	for _, name := range slices.Sorted(maps.Keys(out.Attrs)) {
		value := out.Attrs[name]
		var err error
		switch kind, key, _ := strings.Cut(name, "."); kind {
		case "name":
			for n := range strings.SplitSeq(value, ",") {
				var ref oci.Reference
				if ref, err = oci.ParseReference(n); err != nil {
					break
				}
				a.names = append(a.names, ref)
			}
		case "tar":
			a.tar, err = strconv.ParseBool(value)
		case "push":
			a.push, err = strconv.ParseBool(value)
		case "push-by-digest":
			a.byDigest, err = strconv.ParseBool(value)
		case "force-compression":
			a.force, err = strconv.ParseBool(value)
		case "rewrite-timestamp":
			a.rewrite, err = strconv.ParseBool(value)
		case "oci-mediatypes":
			ociTypes, err = strconv.ParseBool(value)
		case "compression":
			compression = value
		case "compression-level":
			var n int
			n, err = strconv.Atoi(value)
			level = &n
		case "annotation", "annotation-manifest":
			a.manifestAnnotations[key] = value
		case "annotation-index":
			a.indexAnnotations[key] = value
		default:
			return fail("%s is not known", name)
		}
		var bad *strconv.NumError
		switch {
		case errors.As(err, &bad) && bad.Func == "ParseBool":
			return fail("%s=%s: want true or false", name, value)
		case errors.As(err, &bad):
			return fail("%s=%s: want a number", name, value)
		case err != nil:
			return fail("%s=%s: %w", name, value, err)
		}
	}
	a.docker = !ociTypes
	var err error
	if a.method, err = compress.Parse(compression, level); err != nil {
		return fail("%w", err)
	}
	return a, a.check(out)
}

// check finds attributes that contradict each other or the type.
func (a *attributes) check(out Output) error {
	fail := func(s string) error { return fmt.Errorf("output type=%s: %s", out.Type, s) }
	if out.Type == TypeLocal || out.Type == TypeTar {
		if len(out.Attrs) > 0 {
			return fail("it takes nothing but dest")
		}
		if out.Type == TypeLocal && out.Dest == "-" {
			return fail("a directory cannot be standard output; type=tar can")
		}
		return nil
	}
	a.push = a.push || out.Type == TypeRegistry
	switch {
	case !a.tar && out.Type != TypeOCI:
		return fail("tar=false is for type=oci")
	case !a.tar && out.Dest == "-":
		return fail("a directory cannot be standard output")
	case a.push && out.Type != TypeImage && out.Type != TypeRegistry:
		return fail("push is for type=image and type=registry")
	case a.byDigest && !a.push:
		return fail("push-by-digest is for pushes")
	case a.docker && out.Type == TypeOCI:
		return fail("an OCI layout has OCI's media types")
	}
	return nil
}
