package main

import (
	"encoding/json"
	"os"
	"strings"

	"github.com/861fb494/build/internal/builder"
	"github.com/861fb494/build/internal/oci"
)

// writeMetadata writes what docker buildx writes to --metadata-file.
func writeMetadata(path string, tags []oci.Reference, res *builder.Response) error {
	m := map[string]any{"containerimage.config.digest": res.ID}
	if res.Descriptor.Digest != "" {
		m["containerimage.digest"] = res.Descriptor.Digest
		m["containerimage.descriptor"] = res.Descriptor
	}
	var names []string
	for _, t := range tags {
		names = append(names, t.String())
	}
	if len(names) > 0 {
		m["image.name"] = strings.Join(names, ",")
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
