package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestRegistryConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("[registry.\"docker.io\"]\n  mirrors = [\"a.example\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &globals{config: file, mirrors: []string{"docker.io=127.0.0.1:5000"}, insecure: []string{"b.example"}}
	c, err := g.registryConfig()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Registries["docker.io"].Mirrors, []string{"127.0.0.1:5000", "a.example"}; !slices.Equal(got, want) {
		t.Errorf("mirrors of docker.io: %q, want %q", got, want)
	}
	if r := c.Registries["b.example"]; r.Insecure == nil || !*r.Insecure {
		t.Errorf("b.example: %+v, want it insecure", r)
	}

	for _, g := range []*globals{
		{config: filepath.Join(t.TempDir(), "missing.toml")},
		{config: file, mirrors: []string{"docker.io="}},
		{config: file, insecure: []string{"b example"}},
	} {
		if _, err := g.registryConfig(); err == nil {
			t.Errorf("config %q, mirrors %q, insecure %q: no error, want one", g.config, g.mirrors, g.insecure)
		}
	}
}
