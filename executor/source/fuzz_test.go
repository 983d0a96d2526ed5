package source

import (
	"encoding/json"
	"testing"

	"github.com/861fb494/build/internal/oci"
)

// FuzzDocument reads manifests, indexes and configurations as a registry may
// send them.
func FuzzDocument(f *testing.F) {
	const sum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"`+sum+`","size":-1},"layers":[{"digest":"`+sum+`"}]}`), []byte(`{"rootfs":{"diff_ids":["`+sum+`"]}}`), "linux/amd64")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"x","platform":{"os":"linux","architecture":"arm","variant":"v7"}},null]}`), []byte(`{"os":1}`), "linux/arm/v6")
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), []byte(`null`), "windows")
	f.Fuzz(func(t *testing.T, manifest, config []byte, platform string) {
		doc, err := parseDocument(manifest)
		if err != nil {
			return
		}
		if doc.Config == nil {
			d, err := choose(doc.Manifests, oci.Platform{OS: platform})
			if err == nil && d.Annotations["vnd.docker.reference.type"] != "" {
				t.Errorf("choose of %q = %v, an attestation", manifest, d)
			}
			return
		}
		var img Image
		if json.Unmarshal(manifest, &img.Manifest) != nil || json.Unmarshal(config, &img.Config) != nil {
			return
		}
		m := &Images{}
		layers, err := m.layers(oci.Reference{}, img)
		if err == nil && len(layers) != len(img.Config.RootFS.DiffIDs) {
			t.Errorf("layers of %q and %q = %d, want %d", manifest, config, len(layers), len(img.Config.RootFS.DiffIDs))
		}
		matches(img.Config.Platform, oci.Platform{OS: "linux", Architecture: "amd64"})
	})
}
