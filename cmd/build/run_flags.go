package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/861fb494/build/executor/network"
	"github.com/861fb494/build/internal/container"
	"github.com/861fb494/build/internal/oci"
)

// runOptions is the flags of `build run`, as docker run has them.
type runOptions struct {
	detach, interactive, tty, rm, init bool
	readOnly, privileged, shim         bool

	env, envFiles, volumes, publish, hosts []string

	name, workdir, user, network, hostname, pull string
	memory, cpus, stopSignal, runtime            string

	entrypoint  *string
	stopTimeout *int
}

func (o *runOptions) declare(f *pflag.FlagSet) {
	f.SetInterspersed(false) // what comes after the image is the container's
	f.BoolVarP(&o.detach, "detach", "d", false, "run in the background and print the container's ID")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&o.tty, "tty", "t", false, "with a terminal")
	f.BoolVar(&o.rm, "rm", false, "remove the container when it has ended")
	f.BoolVar(&o.init, "init", false, "an init as process 1, which reaps orphans and passes signals on")
	f.BoolVar(&o.readOnly, "read-only", false, "the root filesystem is read-only")
	f.BoolVar(&o.privileged, "privileged", false, "all capabilities and devices, and no system call filter")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable, `NAME=VALUE`, or NAME for the one here (repeatable)")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "set variables from the lines of a `file` (repeatable)")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "mount a `HOSTPATH:PATH[:ro]` (repeatable)")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "publish a port, `[[IP:]HOSTPORT:]PORT[/udp]` (repeatable)")
	f.StringArrayVar(&o.hosts, "add-host", nil, "a `NAME:ADDRESS` for /etc/hosts; host-gateway is this host (repeatable)")
	f.StringVar(&o.name, "name", "", "the container's `name`")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working `directory`")
	f.StringVarP(&o.user, "user", "u", "", "`user[:group]`, names or numbers")
	f.StringVar(&o.network, "network", network.Bridge, "`mode` of the network: bridge, host or none")
	f.StringVarP(&o.hostname, "hostname", "h", "", "the container's host `name`")
	f.StringVar(&o.pull, "pull", "missing", "`when` to pull the image: always, missing or never")
	f.StringVarP(&o.memory, "memory", "m", "", "limit of memory, a `size` such as 512m")
	f.StringVar(&o.cpus, "cpus", "", "limit of processor time, a `number` of processors such as 1.5")
	f.StringVar(&o.stopSignal, "stop-signal", "", "`signal` to stop it by (default: the image's, else SIGTERM)")
	f.StringVar(&o.runtime, "oci-runtime", "", "run with an installed OCI `runtime`, such as runc")
	f.Var(optional[string]{&o.entrypoint, func(s string) (string, error) { return s, nil }}, "entrypoint", "`command` in place of the image's entrypoint")
	f.Var(optional[int]{&o.stopTimeout, parseSeconds}, "stop-timeout", "`seconds` from the stop signal to SIGKILL (default 10)")
	f.BoolVar(&o.shim, "shim", false, "")
	f.Lookup("shim").Hidden = true
	f.Bool("help", false, "help for run") // -h is the host name's
}

// optional is a flag that may not be given.
type optional[T any] struct {
	to    **T
	parse func(string) (T, error)
}

func (o optional[T]) Set(s string) error {
	v, err := o.parse(s)
	if err == nil {
		*o.to = &v
	}
	return err
}

func (o optional[T]) String() string { return "" }
func (o optional[T]) Type() string   { return "string" }

func parseSeconds(s string) (n int, err error) {
	if _, err := fmt.Sscanf(s+"\n", "%d\n", &n); err != nil {
		return 0, errors.New("want a number of seconds")
	}
	return n, nil
}

// hostPorts reports ports that --network host makes pointless.
func (o *runOptions) hostPorts() bool { return o.network == network.Host && len(o.publish) > 0 }

// container is the flags in the terms of package container.
func (o *runOptions) container(args []string) (c container.Options, err error) {
	if !slices.Contains([]string{"always", "missing", "never"}, o.pull) {
		return c, fmt.Errorf("--pull %q: want always, missing or never", o.pull)
	}
	if !slices.Contains([]string{network.Bridge, network.Host, network.None}, o.network) {
		return c, fmt.Errorf("--network %q: want bridge, host or none", o.network)
	}
	c = container.Options{
		Name: o.name, Remove: o.rm, ReadOnly: o.readOnly, Privileged: o.privileged, StopSignal: o.stopSignal,
		Process: container.ProcessOptions{
			Args: args, Dir: o.workdir, User: o.user, Terminal: o.tty, Stdin: o.interactive, Init: o.init,
		},
		Network: container.NetworkOptions{Mode: o.network, Hostname: o.hostname},
	}
	if o.entrypoint != nil {
		c.Process.Entrypoint = []string{*o.entrypoint}
	}
	if o.stopTimeout != nil {
		d := stopTimeout(*o.stopTimeout)
		c.StopTimeout = &d
	}
	if c.Process.Env, err = o.environment(); err != nil {
		return c, err
	}
	for _, v := range o.volumes {
		m, err := parseVolume(v)
		if err != nil {
			return c, err
		}
		c.Mounts = append(c.Mounts, m)
	}
	for _, v := range o.publish {
		ports, err := network.ParsePorts(v)
		if err != nil {
			return c, err
		}
		c.Network.Ports = append(c.Network.Ports, ports...)
	}
	if len(c.Network.Ports) > 0 && o.network == network.None {
		return c, errors.New("--publish needs a network: leave --network none out")
	}
	for _, v := range o.hosts {
		h, err := parseHost(v)
		if err != nil {
			return c, err
		}
		c.Network.Hosts = append(c.Network.Hosts, network.HostEntry(h))
	}
	if c.Resources.Memory, err = parseMemory(o.memory); err != nil {
		return c, err
	}
	c.Resources.CPUs, err = parseCPUs(o.cpus)
	return c, err
}

// environment is what --env-file and then --env set.
func (o *runOptions) environment() ([]string, error) {
	var env []string
	for _, name := range o.envFiles {
		more, err := readEnvFile(name)
		if err != nil {
			return nil, err
		}
		env = append(env, more...)
	}
	for _, kv := range o.env {
		if kv == "" || strings.HasPrefix(kv, "=") {
			return nil, fmt.Errorf("--env %q: no name; want NAME=VALUE", kv)
		}
	}
	return append(env, hostEnv(o.env)...), nil
}

// hostEnv gives bare names the value that they have here; those that have none
// are left out.
func hostEnv(list []string) []string {
	var env []string
	for _, kv := range list {
		if !strings.Contains(kv, "=") {
			value, ok := os.LookupEnv(kv)
			if !ok {
				continue
			}
			kv += "=" + value
		}
		env = append(env, kv)
	}
	return env
}

// readEnvFile reads lines NAME=VALUE or NAME, as docker run --env-file does:
// values are taken as they are, quotes too; lines that begin with # are left
// out.
func readEnvFile(name string) ([]string, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	defer f.Close()
	var list []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(strings.TrimPrefix(lines.Text(), "\ufeff"), " \t")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, _, _ := strings.Cut(line, "=")
		if key == "" || strings.ContainsAny(key, " \t") || !utf8.ValidString(line) {
			return nil, fmt.Errorf("--env-file: %s:%d: %q: want NAME=VALUE", name, n, line)
		}
		list = append(list, line)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("--env-file: %s: %w", name, err)
	}
	return hostEnv(list), nil
}

// parseVolume reads HOSTPATH:PATH[:OPTION,…]. A host path that begins with "."
// is relative to here; one that does not exist becomes a directory.
func parseVolume(v string) (oci.Mount, error) {
	fail := func(why string) (oci.Mount, error) {
		return oci.Mount{}, fmt.Errorf("--volume %q: %s; want HOSTPATH:PATH[:ro]", v, why)
	}
	parts := strings.Split(v, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return fail("it has not two or three parts")
	}
	host, target := parts[0], parts[1]
	if !path.IsAbs(target) || path.Clean(target) == "/" {
		return fail(fmt.Sprintf("%q is no absolute path below the container's root", target))
	}
	switch {
	case host == "":
		return fail("no host path")
	case strings.HasPrefix(host, "."):
		abs, err := filepath.Abs(host)
		if err != nil {
			return fail(err.Error())
		}
		host = abs
	case !filepath.IsAbs(host):
		return fail(fmt.Sprintf("%q would be a named volume, and those are not supported yet: a host path begins with / or ./", host))
	}
	m := oci.Mount{Type: "bind", Source: filepath.Clean(host), Target: path.Clean(target), Options: []string{"rbind"}}
	if len(parts) == 3 {
		for _, option := range strings.Split(parts[2], ",") {
			switch option {
			case "ro", "rw":
				m.Options = append(m.Options, option)
			case "z", "Z", "cached", "delegated", "consistent":
				// SELinux's labels, and what only Docker Desktop knows.
			default:
				return fail(fmt.Sprintf("unknown option %q", option))
			}
		}
	}
	if _, err := os.Stat(m.Source); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			return fail(err.Error())
		}
	}
	return m, nil
}
