package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// write writes files into a new directory.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const gpus = `---
cdiVersion: "0.5.0"
kind: vendor.com/gpu
annotations:
  org.mobyproject.buildkit.device.class: accelerators
containerEdits:
  env:
    - "ALL=1"   # of the file
  mounts:
  - {hostPath: /usr/lib/gpu, containerPath: /lib/gpu, options: [ro, nosuid, rbind]}
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/gpu0
      hostPath: /dev/null
      fileMode: 0o640
      permissions: rw
      uid: 7
- name: one
  annotations: {org.mobyproject.buildkit.device.autoallow: "true"}
  containerEdits:
    env: [ONE=1]
    additionalGids: [44]
- name: all
  containerEdits:
    hooks:
    - hookName: createContainer
      path: /usr/bin/hook
`

const other = `{"cdiVersion": "0.6.0", "kind": "vendor.com/net", "devices": [{"name": "eth", "containerEdits": {"env": ["ETH=early"]}}]}`

func TestFind(t *testing.T) {
	first := write(t, map[string]string{"gpu.yaml": gpus, "net.json": other, "README": "no specification", "x.yml": "neither: is this"})
	second := write(t, map[string]string{
		"net.json": strings.ReplaceAll(other, "early", "late"),
		"bad.yaml": "cdiVersion: [",
		"old.json": `{"cdiVersion": "9.0.0", "kind": "a/b", "devices": []}`,
	})
	r := Load([]string{first, second, filepath.Join(first, "not there")})
	for _, tt := range []struct {
		name string
		want []string
	}{
		{"vendor.com/gpu=one", []string{"vendor.com/gpu=one"}},
		{"vendor.com/gpu=0", []string{"vendor.com/gpu=0"}},
		{"vendor.com/gpu", []string{"vendor.com/gpu=0"}},
		{"vendor.com/gpu=*", []string{"vendor.com/gpu=0", "vendor.com/gpu=all", "vendor.com/gpu=one"}},
		{"accelerators", []string{"vendor.com/gpu=0", "vendor.com/gpu=all", "vendor.com/gpu=one"}},
		{"vendor.com/gp", nil},
		{"vendor.com/gpu=2", nil},
		{"vendor.com", nil},
		{"", nil},
	} {
		got, err := r.Find(tt.name)
		var missing *NotFoundError
		if !slices.Equal(got, tt.want) || tt.want == nil && !errors.As(err, &missing) || tt.want != nil && err != nil {
			t.Errorf("Find(%q) = %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
	_, err := r.Find("a/b=c")
	for _, want := range []string{`device "a/b=c" is not described in /etc/cdi`, "bad.yaml: ", `old.json: cdiVersion "9.0.0" is not known`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Find(%q) fails with %q, want %q in it", "a/b=c", err, want)
		}
	}
	if got := []bool{r.AutoAllowed("vendor.com/gpu=one"), r.AutoAllowed("vendor.com/gpu=0"), r.AutoAllowed("x")}; !slices.Equal(got, []bool{true, false, false}) {
		t.Errorf("AutoAllowed(one, 0, x) = %v, want true, false, false", got)
	}
	e, err := r.Edits([]string{"vendor.com/net=eth"})
	if want := []string{"ETH=late"}; err != nil || !slices.Equal(e.Env, want) {
		t.Errorf("Edits(vendor.com/net=eth).Env = %q, %v, want %q: the later directory counts", e.Env, err, want)
	}
}

func TestEdits(t *testing.T) {
	r := Load([]string{write(t, map[string]string{"gpu.yaml": gpus})})
	got, err := r.Edits([]string{"vendor.com/gpu=0", "vendor.com/gpu=one"})
	mode, uid := uint32(0o640), uint32(7)
	want := Edits{
		Env:    []string{"ALL=1", "ONE=1"},
		Mounts: []Mount{{HostPath: "/usr/lib/gpu", ContainerPath: "/lib/gpu", Options: []string{"ro", "nosuid", "rbind"}}},
		Nodes:  []Node{{Path: "/dev/gpu0", HostPath: "/dev/null", Mode: &mode, Permissions: "rw", UID: &uid}},
		GIDs:   []uint32{44},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Edits(0, one) = %+v, %v, want %+v", got, err, want)
	}
	if _, err := r.Edits([]string{"vendor.com/gpu=all"}); err == nil || !strings.Contains(err.Error(), "hooks") {
		t.Errorf("Edits(all) = %v, want an error that names hooks", err)
	}
}

func TestTwice(t *testing.T) {
	r := Load([]string{write(t, map[string]string{"a.json": other, "b.json": other})})
	if _, err := r.Find("vendor.com/net=eth"); err == nil || !strings.Contains(err.Error(), "described by both") {
		t.Errorf("Find of a device in two files of one directory = %v, want an error that says so", err)
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"no version", `{"kind": "a/b"}`, `cdiVersion "" is not known`},
		{"no class", `{"cdiVersion": "0.6.0", "kind": "a"}`, `kind "a": want VENDOR/CLASS`},
		{"unknown field", `{"cdiVersion": "0.6.0", "kind": "a/b", "device": []}`, `unknown field "device"`},
		{"device name", `{"cdiVersion": "0.6.0", "kind": "a/b", "devices": [{"name": "a b"}]}`, `device name "a b"`},
		{"variable", `{"cdiVersion": "0.6.0", "kind": "a/b", "containerEdits": {"env": ["=x"]}}`, `environment variable "=x"`},
		{"node", `{"cdiVersion": "0.6.0", "kind": "a/b", "containerEdits": {"deviceNodes": [{"path": "dev/x"}]}}`, `device node "dev/x": its path is not absolute`},
		{"type", `{"cdiVersion": "0.6.0", "kind": "a/b", "containerEdits": {"deviceNodes": [{"path": "/x", "type": "s"}]}}`, `type "s"`},
		{"permissions", `{"cdiVersion": "0.6.0", "kind": "a/b", "containerEdits": {"deviceNodes": [{"path": "/x", "permissions": "x"}]}}`, `permissions "x"`},
		{"mount", `{"cdiVersion": "0.6.0", "kind": "a/b", "containerEdits": {"mounts": [{"hostPath": "/a", "containerPath": "b"}]}}`, `mount of "/a" at "b"`},
		{"no JSON", `x`, "invalid character"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := read(filepath.Join(write(t, map[string]string{"f.json": tt.text}), "f.json"))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("read(%q) = %v, want an error with %q", tt.text, err, tt.want)
			}
		})
	}
}

func TestFill(t *testing.T) {
	mode := func(m uint32) *uint32 { return &m }
	file := filepath.Join(write(t, map[string]string{"f": ""}), "f")
	for _, tt := range []struct {
		name string
		in   Node
		want Node
		err  string
	}{
		{"all of it from the host", Node{Path: "/dev/null"}, Node{Path: "/dev/null", HostPath: "/dev/null", Type: "c", Major: 1, Minor: 3, Mode: mode(0o666)}, ""},
		{"another path", Node{Path: "/x", HostPath: "/dev/full", Mode: mode(0o600)}, Node{Path: "/x", HostPath: "/dev/full", Type: "c", Major: 1, Minor: 7, Mode: mode(0o600)}, ""},
		{"all said", Node{Path: "/not/there", Type: "b", Major: 8, Minor: 1}, Node{Path: "/not/there", HostPath: "/not/there", Type: "b", Major: 8, Minor: 1}, ""},
		{"unbuffered", Node{Path: "/not/there", Type: "u", Major: 8, Minor: 1}, Node{Path: "/not/there", HostPath: "/not/there", Type: "c", Major: 8, Minor: 1}, ""},
		{"not there", Node{Path: "/not/there"}, Node{}, "look for device /not/there"},
		{"no device", Node{Path: file}, Node{}, "is no device"},
		{"another type", Node{Path: "/dev/null", Type: "b"}, Node{}, "device /dev/null is of type c, not b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.in
			err := got.Fill()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Fill(%+v) = %v, want an error with %q", tt.in, err, tt.err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("Fill(%+v) = %+v, %v, want %+v", tt.in, got, err, tt.want)
			}
		})
	}
}
