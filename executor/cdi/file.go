package cdi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"
	"golang.org/x/sys/unix"
)

// file is a specification, of devices of one kind.
type file struct {
	path string

	Version     string            `json:"cdiVersion"`
	Kind        string            `json:"kind"` // "vendor.com/class"
	Annotations map[string]string `json:"annotations"`
	Devices     []Device          `json:"devices"`
	Edits       Edits             `json:"containerEdits"`
}

// Device is one device of a specification.
type Device struct {
	Name        string            `json:"name"`
	Annotations map[string]string `json:"annotations"`
	Edits       Edits             `json:"containerEdits"`
}

// Edits are changes of a container ("containerEdits").
type Edits struct {
	Env    []string `json:"env"` // "NAME=value"
	Nodes  []Node   `json:"deviceNodes"`
	Mounts []Mount  `json:"mounts"`
	GIDs   []uint32 `json:"additionalGids"`

	// Of these it counts only that there are some: none is supported.
	Hooks      []any          `json:"hooks"`
	NetDevices []any          `json:"netDevices"`
	IntelRdt   map[string]any `json:"intelRdt"`
}

// Node is a device node. What it leaves out is as on the host: see Fill.
type Node struct {
	Path        string  `json:"path"` // in the container
	HostPath    string  `json:"hostPath"`
	Type        string  `json:"type"` // "c", "u", "b" or "p"
	Major       int64   `json:"major"`
	Minor       int64   `json:"minor"`
	Mode        *uint32 `json:"fileMode"`
	Permissions string  `json:"permissions"` // of "rwm"; empty: all
	UID         *uint32 `json:"uid"`         // nil: the process's
	GID         *uint32 `json:"gid"`
}

// Mount is a mount.
type Mount struct {
	HostPath      string   `json:"hostPath"`
	ContainerPath string   `json:"containerPath"`
	Options       []string `json:"options"`
	Type          string   `json:"type"`
}

// maxFile bounds a specification.
const maxFile = 16 << 20

func read(path string) (*file, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err) // the caller names the file
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	if filepath.Ext(path) == ".yaml" {
		// By way of JSON, so that both forms are read by one set of rules.
		var v any
		if err := yaml.Unmarshal(data, &v); err != nil {
			return nil, err
		}
		if data, err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	f := &file{path: path}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(f); err != nil {
		return nil, err
	}
	return f, f.check()
}

func (f *file) check() error {
	vendor, class, ok := strings.Cut(f.Kind, "/")
	switch {
	case !strings.HasPrefix(f.Version, "0.") && !strings.HasPrefix(f.Version, "1."):
		return fmt.Errorf("cdiVersion %q is not known", f.Version)
	case !ok || !isName(vendor, "") || !isName(class, ""):
		return fmt.Errorf("kind %q: want VENDOR/CLASS", f.Kind)
	}
	if err := f.Edits.check(); err != nil {
		return err
	}
	for _, d := range f.Devices {
		if !isName(d.Name, ":") {
			return fmt.Errorf("device name %q: want letters, digits and -_.:", d.Name)
		}
		if err := d.Edits.check(); err != nil {
			return fmt.Errorf("device %s: %w", d.Name, err)
		}
	}
	return nil
}

// isName reports a name of letters, digits and "-_.", and more.
func isName(s, more string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."+more) == ""
}

func (e *Edits) check() error {
	for _, v := range e.Env {
		if strings.Index(v, "=") <= 0 {
			return fmt.Errorf("environment variable %q: want NAME=VALUE", v)
		}
	}
	for _, n := range e.Nodes {
		if !filepath.IsAbs(n.Path) || n.HostPath != "" && !filepath.IsAbs(n.HostPath) {
			return fmt.Errorf("device node %q: its path is not absolute", n.Path)
		}
		switch n.Type {
		case "", "b", "c", "u", "p":
		default:
			return fmt.Errorf("device node %s: type %q: want b, c, u or p", n.Path, n.Type)
		}
		if strings.Trim(n.Permissions, "rwm") != "" {
			return fmt.Errorf("device node %s: permissions %q: want some of rwm", n.Path, n.Permissions)
		}
	}
	for _, m := range e.Mounts {
		if !filepath.IsAbs(m.ContainerPath) || m.HostPath == "" {
			return fmt.Errorf("mount of %q at %q: want a host path and an absolute one in the container", m.HostPath, m.ContainerPath)
		}
	}
	return nil
}

func (e *Edits) add(f Edits) {
	e.Env = append(e.Env, f.Env...)
	e.Nodes = append(e.Nodes, f.Nodes...)
	e.Mounts = append(e.Mounts, f.Mounts...)
	e.GIDs = append(e.GIDs, f.GIDs...)
	e.Hooks = append(e.Hooks, f.Hooks...)
	e.NetDevices = append(e.NetDevices, f.NetDevices...)
	if f.IntelRdt != nil {
		e.IntelRdt = f.IntelRdt
	}
}

// supported refuses what a step's sandbox has no place for, rather than give it
// a device that is half set up.
func (e *Edits) supported() error {
	for _, x := range []struct {
		name string
		is   bool
	}{
		{"hooks: programs that a container runtime runs on the host", len(e.Hooks) > 0},
		{"network devices", len(e.NetDevices) > 0},
		{"intelRdt", e.IntelRdt != nil},
	} {
		if x.is {
			return fmt.Errorf("its description asks for %s, which steps cannot have", x.name)
		}
	}
	return nil
}

// Fill completes n from the host's device; what n says itself stays.
func (n *Node) Fill() error {
	if n.HostPath == "" {
		n.HostPath = n.Path
	}
	if n.Type == "u" {
		n.Type = "c" // unbuffered: what Linux calls a character device
	}
	said := n.Type != "" && (n.Major != 0 || n.Type == "p")
	var st unix.Stat_t
	err := unix.Lstat(n.HostPath, &st)
	if err != nil {
		if said {
			return nil
		}
		return &os.PathError{Op: "look for device", Path: n.HostPath, Err: err}
	}
	if n.Mode == nil {
		mode := st.Mode &^ unix.S_IFMT
		n.Mode = &mode
	}
	if said {
		return nil
	}
	kind, ok := map[uint32]string{unix.S_IFBLK: "b", unix.S_IFCHR: "c", unix.S_IFIFO: "p"}[st.Mode&unix.S_IFMT]
	if !ok {
		return fmt.Errorf("%s is no device", n.HostPath)
	}
	if n.Type != "" && n.Type != kind {
		return fmt.Errorf("device %s is of type %s, not %s as its description says", n.HostPath, kind, n.Type)
	}
	n.Type = kind
	if kind != "p" {
		n.Major, n.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return nil
}
