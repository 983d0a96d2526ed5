package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"
)

// globals is what every command is constructed with: the options that stand
// before or after any command's name, and the streams. The options are set
// once the command runs, not while it is constructed.
type globals struct {
	root     string // the state directory; see stateDir
	config   string // path of the configuration file; "": the usual places
	debug    bool
	mirrors  []string // "docker.io=127.0.0.1:5000"
	insecure []string // registries spoken to without TLS, or without verifying it

	profile profile

	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	// releaseSignals ends the handling of SIGINT and SIGTERM that cancels the
	// command's context: for commands that pass signals on to a process. Call
	// it after signal.Notify, or a signal in between ends the program.
	releaseSignals func()
}

// flags declares the global options on f.
func (g *globals) flags(f *pflag.FlagSet) {
	f.StringVar(&g.root, "root", os.Getenv("BUILD_ROOT"), "state `directory`: cache and images (BUILD_ROOT; default "+defaultRoot()+")")
	f.StringVar(&g.config, "config", os.Getenv("BUILD_CONFIG"), "configuration `file` (BUILD_CONFIG)")
	// Help tells the variables' names; their values would pass for defaults.
	f.Lookup("root").DefValue, f.Lookup("config").DefValue = "", ""
	f.BoolVar(&g.debug, "debug", false, "print what is of use for finding a fault")
	f.StringArrayVar(&g.mirrors, "registry-mirror", nil, "ask a mirror first, as `REGISTRY=HOST[:PORT]` (repeatable)")
	f.StringArrayVar(&g.insecure, "insecure-registry", nil, "speak to `HOST[:PORT]` by plain HTTP or unverified TLS (repeatable)")
	g.profile.flags(f)
}

// stateDir is the absolute path of the state directory. It need not exist.
func (g *globals) stateDir() (string, error) {
	dir, err := filepath.Abs(cmp.Or(g.root, defaultRoot()))
	if err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	return dir, nil
}

// debugf prints a line on standard error where --debug is given.
func (g *globals) debugf(format string, args ...any) {
	if g.debug {
		fmt.Fprintf(g.stderr, "debug: "+format+"\n", args...)
	}
}

// defaultRoot is /var/lib/build for root, else a directory of the user's as
// the XDG base directory specification has it.
func defaultRoot() string {
	if os.Geteuid() == 0 {
		return "/var/lib/build"
	}
	if d := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "build")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("build-%d", os.Getuid()))
	}
	return filepath.Join(home, ".local", "share", "build")
}
