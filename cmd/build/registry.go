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

// registry is the client that speaks to registries as the user configured it,
// logged in as Docker's configuration says.
func (g *globals) registry() (*registry.Client, error) {
	c, err := g.registryConfig()
	if err != nil {
		return nil, err
	}
	return registry.New(registry.Options{Config: c, Keychain: registry.DefaultCredentials()}), nil
}
