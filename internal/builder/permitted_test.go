package builder

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/861fb494/build/executor/cdi"
	"github.com/861fb494/build/llb"
)

func TestAllowedDevices(t *testing.T) {
	dir := t.TempDir()
	text := `{"cdiVersion": "0.6.0", "kind": "v.com/gpu", "devices": [
		{"name": "0"}, {"name": "1"}, {"name": "free", "annotations": {"org.mobyproject.buildkit.device.autoallow": "true"}}]}`
	if err := os.WriteFile(filepath.Join(dir, "gpu.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r := cdi.Load([]string{dir})
	need := func(names ...string) []llb.Device {
		var out []llb.Device
		for _, n := range names {
			out = append(out, llb.Device{Name: n, Required: true})
		}
		return out
	}
	for _, tt := range []struct {
		name    string
		wanted  []llb.Device
		allowed map[string]string
		want    []llb.Device
		err     string
	}{
		{"nothing allowed", need("v.com/gpu=0"), nil, nil, "add --allow device=v.com/gpu=0"},
		{"by its name", need("v.com/gpu=0"), map[string]string{"v.com/gpu=0": "v.com/gpu=0"}, need("v.com/gpu=0"), ""},
		{"another one", need("v.com/gpu=1"), map[string]string{"v.com/gpu=0": "v.com/gpu=0"}, nil, "add --allow device=v.com/gpu=1"},
		{"the class", need("v.com/gpu"), map[string]string{"v.com/gpu": "v.com/gpu"}, need("v.com/gpu=0"), ""},
		{"all of the class", need("v.com/gpu=*"), map[string]string{"v.com/gpu=*": "v.com/gpu=*"}, need("v.com/gpu=0", "v.com/gpu=1", "v.com/gpu=free"), ""},
		{"the first, where all are asked for", need("v.com/gpu=*"), map[string]string{"v.com/gpu": "v.com/gpu"}, nil, "v.com/gpu=1"},
		{"an alias", need("gpu"), map[string]string{"gpu": "v.com/gpu=1", "v.com/gpu=1": "v.com/gpu=1"}, need("v.com/gpu=1"), ""},
		{"allowed by its vendor", need("v.com/gpu=free"), nil, need("v.com/gpu=free"), ""},
		{"required and not there", need("v.com/gpu=9"), nil, nil, "is not described"},
		{"not there", []llb.Device{{Name: "v.com/gpu=9"}}, nil, []llb.Device{{Name: "v.com/gpu=9"}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := allowedDevices(r, tt.wanted, tt.allowed)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("allowedDevices(%v, %v) = %v, want an error with %q", tt.wanted, tt.allowed, err, tt.err)
				}
				return
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("allowedDevices(%v, %v) = %v, %v, want %v", tt.wanted, tt.allowed, got, err, tt.want)
			}
		})
	}
}
