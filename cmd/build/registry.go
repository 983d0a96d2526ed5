package main

import (
	"github.com/861fb494/build/internal/registry"
)

// registryConfig is what the configuration file and then the flags say of
// registries.
func (g *globals) registryConfig() (registry.Config, error) {
	c, err := registry.LoadConfig(g.config)
	for _, flag := range g.mirrors {
		if err == nil {
			c, err = c.WithMirror(flag)
		}
	}
	for _, flag := range g.insecure {
		if err == nil {
			c, err = c.WithInsecure(flag)
		}
	}
	return c, err
}
