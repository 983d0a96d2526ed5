// Package cdi finds the devices that vendors describe in files, by the
// Container Device Interface:
// https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md.
package cdi

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Dirs are where specifications are looked for; of two devices with one name,
// the one in the later directory counts.
var Dirs = []string{"/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"}

// Registry is the devices that are described.
type Registry struct {
	devices map[string]*device // by qualified name, "vendor.com/class=name"
	names   []string           // of devices, sorted
	broken  []error            // files that could not be read
}

type device struct {
	file *file
	Device
}

// Load reads the files *.json and *.yaml in dirs. A file that cannot be read is
// left out, and told of when a device is not found.
func Load(dirs []string) *Registry {
	r := &Registry{devices: map[string]*device{}}
	for _, dir := range dirs {
		r.load(dir)
	}
	for name := range r.devices {
		r.names = append(r.names, name)
	}
	slices.Sort(r.names)
	return r
}

func (r *Registry) load(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.broken = append(r.broken, err)
		}
		return
	}
	here := map[string]*device{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if ext := filepath.Ext(path); ext != ".json" && ext != ".yaml" || e.IsDir() {
			continue
		}
		f, err := read(path)
		if err != nil {
			r.broken = append(r.broken, fmt.Errorf("%s: %w", path, err))
			continue
		}
		for _, d := range f.Devices {
			name := f.Kind + "=" + d.Name
			if other, ok := here[name]; ok {
				r.broken = append(r.broken, fmt.Errorf("%s is described by both %s and %s", name, other.file.path, path))
				delete(r.devices, name)
				continue
			}
			here[name] = &device{file: f, Device: d}
			r.devices[name] = here[name]
		}
	}
}

// A NotFoundError says that no device goes by a name.
type NotFoundError struct {
	Name   string
	Broken []error // files that could not be read, where it might be
}

func (e *NotFoundError) Error() string {
	s := fmt.Sprintf("device %q is not described in %s", e.Name, strings.Join(Dirs, ", "))
	if len(e.Broken) > 0 {
		s += ": " + errors.Join(e.Broken...).Error()
	}
	return s
}

// classAnnotation gives a device a further name, which it may share with
// others.
const classAnnotation = "org.mobyproject.buildkit.device.class"

// allowAnnotation says that builds may use a device without being allowed to.
const allowAnnotation = "org.mobyproject.buildkit.device.autoallow"

// Find is the qualified names of the devices meant by name, as BuildKit reads
// it: "vendor.com/class=name", "vendor.com/class" for the first of the class,
// "vendor.com/class=*" for all, or a name that an annotation gives. None is a
// *NotFoundError.
func (r *Registry) Find(name string) ([]string, error) {
	var found []string
	kind, one, _ := strings.Cut(name, "=")
	if vendor, class, ok := strings.Cut(kind, "/"); ok && vendor != "" && class != "" {
		for _, n := range r.names {
			if n == name || strings.HasPrefix(n, kind+"=") && (one == "*" || one == "" && len(found) == 0) {
				found = append(found, n)
			}
		}
	}
	if len(found) == 0 && name != "" {
		for _, n := range r.names {
			if r.annotation(n, classAnnotation) == name {
				found = append(found, n)
			}
		}
	}
	if len(found) == 0 {
		return nil, &NotFoundError{Name: name, Broken: r.broken}
	}
	return found, nil
}

// AutoAllowed reports a device whose vendor lets every build use it.
func (r *Registry) AutoAllowed(name string) bool {
	ok, err := strconv.ParseBool(r.annotation(name, allowAnnotation))
	return ok && err == nil
}

func (r *Registry) annotation(name, key string) string {
	d, ok := r.devices[name]
	if !ok {
		return ""
	}
	return cmp.Or(d.Annotations[key], d.file.Annotations[key])
}

// Edits is what the devices of these qualified names change in a container.
// What the file of a device says for all its devices comes first, once.
func (r *Registry) Edits(names []string) (Edits, error) {
	var all Edits
	done := map[*file]bool{}
	for _, name := range names {
		d, ok := r.devices[name]
		if !ok {
			return all, &NotFoundError{Name: name, Broken: r.broken}
		}
		if !done[d.file] {
			done[d.file] = true
			all.add(d.file.Edits)
		}
		all.add(d.Edits)
	}
	if err := all.supported(); err != nil {
		return all, fmt.Errorf("device %s: %w", strings.Join(names, ", "), err)
	}
	return all, nil
}
