// Package builder is the composition root: it opens the state directory and
// builds images out of the packages below, none of which know each other.
package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/executor/network"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/exporter/compress"
	"github.com/861fb494/build/internal/registry"
	"github.com/861fb494/build/solver"
)

// Options are those of Open. The zero value works.
type Options struct {
	Driver     string                          // "auto", "overlay" or "plain"; "" is "auto"
	OCIRuntime string                          // name or path of an installed OCI runtime; "": our own sandbox
	Registries func() (registry.Config, error) // called when a registry is first needed; nil: none is configured
}

// Builder has a state directory open. It is safe for concurrent use.
type Builder struct {
	Store  *cache.Store
	Images *image.Store
	// Notice is something that the user should know of the state directory.
	Notice string

	options  Options
	solver   *solver.Solver[executor.Result]
	host     executor.Host
	losses   executor.Losses
	poolOnce sync.Once
	pool     *compress.Pool

	clientOnce sync.Once
	client     *registry.Client
	clientErr  error
}

// Open opens the state directory root, making it if it is not there. Close
// releases it.
func Open(ctx context.Context, root string, o Options) (_ *Builder, err error) {
	root, err = filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("open state directory: %w (choose another with --root)", err)
	}
	driver, notice, err := newDriver(root, o.Driver)
	if err != nil {
		return nil, err
	}
	b := &Builder{options: o, Notice: notice}
	if b.Store, err = cache.Open(ctx, root, driver); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.Close(ctx)
		}
	}()
	if b.Images, err = image.Open(filepath.Join(root, "images")); err != nil {
		return nil, err
	}
	box, err := newSandbox(root, o.OCIRuntime)
	if err != nil {
		return nil, err
	}
	b.host = executor.Host{Store: b.Store, Sandbox: box, Networks: network.New("", network.Options{})}
	b.solver = solver.New[executor.Result](executor.Records{Store: b.Store, Losses: &b.losses, Differences: new(executor.Differences)}, solver.Options{})
	return b, nil
}

// Close leaves the network of steps, whose last user takes it down, and
// releases the state directory.
func (b *Builder) Close(ctx context.Context) error {
	var network error
	if b.host.Networks != nil { // nil if Open failed early
		network = b.host.Networks.Close()
	}
	var box error
	if w, ok := b.host.Sandbox.(sandbox.Warmer); ok {
		box = w.Close()
	}
	return errors.Join(box, network, b.Store.Close(context.WithoutCancel(ctx)))
}

// Sweep removes what killed processes left: layers half made, temporary files,
// cgroups, a network.
func (b *Builder) Sweep(ctx context.Context) error {
	alive := func(id string) bool {
		lease, _, _ := strings.Cut(id, "-") // steps are called after the lease of their build
		return b.Store.Alive(lease)
	}
	b.Images.Sweep()
	err := b.Store.Sweep(ctx)
	if os.Geteuid() != 0 {
		return err // whose processes had neither steps nor networks
	}
	return errors.Join(
		err,
		sandbox.Sweep(b.Store.Group(), alive),
		sandbox.NewOCI("", bundles(b.Store.Dir())).Sweep(alive),
		b.host.Networks.Sweep(ctx),
	)
}

// Host is what steps and containers run with.
func (b *Builder) Host() executor.Host { return b.host }

// bundles is where an OCI runtime's bundles are kept for as long as steps run.
func bundles(root string) string { return filepath.Join(root, "oci") }

func newSandbox(root, runtime string) (sandbox.Sandbox, error) {
	if runtime == "" {
		return sandbox.NewNative(sandbox.NativeOptions{}), nil
	}
	path, err := exec.LookPath(runtime)
	if err != nil {
		return nil, fmt.Errorf("OCI runtime %q: %w: install it, or leave --oci-runtime out: none is needed", runtime, err)
	}
	return sandbox.NewOCI(path, bundles(root)), nil
}

// Registry is the client of registries.
func (b *Builder) Registry() (*registry.Client, error) {
	b.clientOnce.Do(func() {
		var config registry.Config
		if b.options.Registries != nil {
			config, b.clientErr = b.options.Registries()
		}
		if b.clientErr == nil {
			b.client = registry.New(registry.Options{Config: config, Keychain: registry.DefaultCredentials()})
		}
	})
	return b.client, b.clientErr
}
