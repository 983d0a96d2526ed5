package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/861fb494/build/cache/remote"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// buildOptions is what the build command's line says, parsed.
type buildOptions struct {
	Context  string // a directory, "-" for a tar on standard input, or a URL
	File     string // the Dockerfile; "": Dockerfile in Context; "-": standard input
	Frontend frontendOptions
	Cache    cacheOptions
	Steps    stepOptions
	Session  sessionOptions
	Output   outputOptions
	Progress string // "auto", "plain", "tty", "quiet" or "rawjson"
	Driver   string // snapshots: "auto", "overlay" or "plain"
}

// frontendOptions say how the Dockerfile is read.
type frontendOptions struct {
	Target    string // a stage; "": the last one
	Args      map[string]string
	Labels    map[string]string
	Contexts  map[string]string // name, as in FROM, to directory, URL or "docker-image://…"
	Platforms []oci.Platform    // empty: this machine's
	Call      callOption
}

// cacheOptions say what of earlier builds may serve.
type cacheOptions struct {
	Pull          bool // ask the registry what a tag is, even if it is here
	Locked        bool // go by the lock file
	Offline       bool // ask nobody
	NoCache       bool
	NoCacheStages []string
	ExpectCached  []string // stages; allStages alone for all of them
	From, To      []remote.Spec
}

// stepOptions are the surroundings of RUN steps.
type stepOptions struct {
	Network         string // llb.NetworkDefault, NetworkNone or NetworkHost
	Hosts           []llb.Host
	Ulimits         []llb.Ulimit
	ShmSize         int64 // bytes; 0: 64 MiB
	Memory          int64 // bytes a step; 0: no limit
	CPUs            float64
	CgroupParent    string
	NoNewPrivileges bool
	OCIRuntime      string            // name or path of an installed OCI runtime; "": none
	Allow           []string          // entitlements: "network.host", "security.insecure", "device"
	AllowDevices    map[string]string // by name and by alias: name
}

// sessionOptions are what a build may reach of its caller's.
type sessionOptions struct {
	Secrets []secretOption
	SSH     []sshOption
}

// secretOption is a --secret: one of File and Env is set.
type secretOption struct{ ID, File, Env string }

// sshOption is a --ssh: an agent's socket, or keys to serve.
type sshOption struct {
	ID    string
	Paths []string // empty: the socket in SSH_AUTH_SOCK
	Raw   bool     // whatever listens at the one path
}

// outputOptions say where the result goes.
type outputOptions struct {
	Tags             []oci.Reference
	Outputs          []outputOption
	Push             bool
	Squash           bool              // the layers that the build makes become one
	Reproducible     bool              // nothing in the image tells when or where it was built
	Annotations      map[string]string // of the manifest
	IIDFile          string
	MetadataFile     string
	Load             bool
	Quiet            bool   // the image's id is all that is printed
	Compression      string // "gzip", "zstd" or "uncompressed"; "": gzip
	CompressionLevel *int   // nil: the compressor's default
}

// outputOption is a --output.
type outputOption struct {
	Type  string            // "local", "tar", "oci", "docker", "image", "registry", "cacheonly"
	Dest  string            // a path, "-" for standard output, or ""
	Attrs map[string]string // what else was said, by its name
}

func newBuildCommand(g *globals) *cobra.Command {
	var f buildFlags
	c := &cobra.Command{
		Use:   "build [flags] CONTEXT",
		Short: "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile, without a daemon.

CONTEXT is a directory, a tar archive's or a git repository's URL, or - for a tar
archive or a Dockerfile on standard input. Its Dockerfile is the one named Dockerfile
unless --file names another. A directory called like a command is written ./NAME.`,
		Example: `  build -t web .
  build -f docker/Dockerfile --target test --build-arg VERSION=3 .
  build -t registry.example/web --push .
  build --output type=oci,dest=web.tar .`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 1:
				return nil
			case len(args) == 2 && args[0] == "help":
				return fmt.Errorf("there is no command %q; 'build --help' lists them", args[1])
			case len(args) > 1 && slices.ContainsFunc(commands(), func(c command) bool { return c.name == args[0] }):
				return fmt.Errorf("build needs one CONTEXT; for the command %s write it before these flags: build %[1]s [flags]", args[0])
			}
			return fmt.Errorf("build needs one CONTEXT, such as \".\"; %d given", len(args))
		},
		RunE: func(c *cobra.Command, args []string) error {
			options, err := f.options(args[0])
			if err != nil {
				return &usageError{err: err}
			}
			return runBuild(c.Context(), g, options)
		},
		ValidArgsFunction: completeContext,
	}
	f.declare(c.Flags())
	return c
}
