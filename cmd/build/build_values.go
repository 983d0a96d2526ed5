package main

import (
	"encoding/csv"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/861fb494/build/cache/remote"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// The parsers of flag values, in docker build's forms. Each names its flag in
// its errors, since several flags come from one line.

// parsePairs reads NAME=VALUE. A bare NAME takes the value that missing gives
// it, or is left out.
func parsePairs(flag string, values []string, missing func(name string) (string, bool)) (map[string]string, error) {
	pairs := make(map[string]string, len(values))
	for _, v := range values {
		name, value, ok := strings.Cut(v, "=")
		if name == "" {
			return nil, fmt.Errorf("--%s %q: no name; want NAME=VALUE", flag, v)
		}
		if !ok {
			if value, ok = missing(name); !ok {
				continue
			}
		}
		pairs[name] = value
	}
	return pairs, nil
}

// parseContexts reads NAME=VALUE, where NAME is one that FROM or --from uses.
func parseContexts(values []string) (map[string]string, error) {
	contexts := make(map[string]string, len(values))
	for _, v := range values {
		name, value, _ := strings.Cut(v, "=")
		if name == "" || value == "" {
			return nil, fmt.Errorf("--build-context %q: want NAME=VALUE", v)
		}
		// "alpine:latest" and "docker.io/library/alpine" name what FROM
		// alpine does.
		r, err := oci.ParseReference(name)
		if err != nil {
			return nil, fmt.Errorf("--build-context %q: %w", v, err)
		}
		contexts[strings.TrimSuffix(r.Familiar(), ":latest")] = value
	}
	return contexts, nil
}

// parseAnnotations reads [manifest:]NAME=VALUE. Annotations of what encloses a
// manifest are not supported yet.
func parseAnnotations(values []string) (map[string]string, error) {
	plain := make([]string, len(values))
	for i, v := range values {
		name, _, ok := strings.Cut(v, "=")
		if !ok {
			return nil, fmt.Errorf("--annotation %q: want NAME=VALUE", v)
		}
		where, _, typed := strings.Cut(name, ":")
		switch {
		case typed && where == "manifest":
			v = strings.TrimPrefix(v, "manifest:")
		case typed && !strings.Contains(where, "."):
			return nil, fmt.Errorf("--annotation %q: only annotations of the manifest are supported yet", v)
		}
		plain[i] = v
	}
	return parsePairs("annotation", plain, func(string) (string, bool) { return "", false })
}

// parseHost reads NAME:ADDRESS or NAME=ADDRESS; an IPv6 address may stand in
// brackets. The address "host-gateway" is the host as RUN steps reach it.
func parseHost(v string) (llb.Host, error) {
	name, addr, ok := strings.Cut(v, "=")
	if !ok {
		name, addr, ok = strings.Cut(v, ":")
	}
	if !ok || name == "" {
		return llb.Host{}, fmt.Errorf("--add-host %q: want NAME:ADDRESS", v)
	}
	if inner, ok := strings.CutPrefix(addr, "["); ok {
		addr = strings.TrimSuffix(inner, "]")
	}
	if addr == "host-gateway" {
		return llb.Host{Name: name, Addr: addr}, nil
	}
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return llb.Host{}, fmt.Errorf("--add-host %q: %q is no IP address", v, addr)
	}
	return llb.Host{Name: name, Addr: ip.String()}, nil
}

// parseUlimit reads NAME=SOFT[:HARD]; -1 is unlimited.
func parseUlimit(v string) (llb.Ulimit, error) {
	u, err := units.ParseUlimit(v)
	if err != nil {
		return llb.Ulimit{}, fmt.Errorf("--ulimit %q: %w", v, err)
	}
	return llb.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard}, nil
}

// parseSize reads a size in bytes, with k, m, g for powers of 1024; "" is 0.
func parseSize(flag, v string) (int64, error) {
	if v == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(v)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("--%s %q: want a size, such as 512m", flag, v)
	}
	return n, nil
}

// minMemory is the least memory that a process is started in, as with Docker.
const minMemory = 6 << 20

// parseMemory reads a limit of memory, "" and 0 for none.
func parseMemory(v string) (int64, error) {
	n, err := parseSize("memory", v)
	if err == nil && n > 0 && n < minMemory {
		return 0, fmt.Errorf("--memory %q: no process starts in less than 6m; want a size, such as 512m", v)
	}
	return n, err
}

// parseCPUs reads a number of processors, "" and 0 for no limit.
func parseCPUs(v string) (float64, error) {
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(v, 64)
	if err != nil || !(n >= 0 && n < 1<<20) {
		return 0, fmt.Errorf("--cpus %q: want a number of processors, such as 1.5", v)
	}
	return n, nil
}

// fields reads one line of comma-separated NAME=VALUE, where quotes protect
// commas, as in docker's flags. A field without "=" is a name with the value
// "". Names are in lower case.
func fields(flag, v string) (names, values []string, err error) {
	line, err := csv.NewReader(strings.NewReader(v)).Read()
	if err != nil {
		return nil, nil, fmt.Errorf("--%s %q: want NAME=VALUE, separated by commas", flag, v)
	}
	for _, f := range line {
		name, value, _ := strings.Cut(f, "=")
		names, values = append(names, strings.ToLower(strings.TrimSpace(name))), append(values, value)
	}
	return names, values, nil
}

// parseSecret reads id=NAME[,src=FILE|,env=VARIABLE][,type=file|env]. Without a
// source it is the variable NAME if there is one, else the file NAME.
func parseSecret(v string, lookup func(string) (string, bool)) (secretOption, error) {
	names, values, err := fields("secret", v)
	if err != nil {
		return secretOption{}, err
	}
	var s secretOption
	var kind string
	for i, name := range names {
		switch name {
		case "id":
			s.ID = values[i]
		case "src", "source":
			s.File = values[i]
		case "env":
			s.Env = values[i]
		case "type":
			if kind = values[i]; kind != "file" && kind != "env" {
				return secretOption{}, fmt.Errorf("--secret %q: type %q: want file or env", v, kind)
			}
		default:
			return secretOption{}, fmt.Errorf("--secret %q: unknown %q; want id=NAME[,src=FILE|,env=VARIABLE]", v, name)
		}
	}
	if kind == "env" && s.Env == "" {
		s.Env, s.File = s.File, ""
	}
	if s.ID == "" {
		return secretOption{}, fmt.Errorf("--secret %q: no id; want id=NAME[,src=FILE|,env=VARIABLE]", v)
	}
	if s.Env != "" && s.File != "" {
		return secretOption{}, fmt.Errorf("--secret %q: src and env exclude each other", v)
	}
	if s.Env == "" && s.File == "" {
		if _, ok := lookup(s.ID); (ok && kind == "") || kind == "env" {
			s.Env = s.ID
		} else {
			s.File = s.ID
		}
	}
	return s, nil
}

// allowDevice reads NAME[,alias=ALIAS] of --allow device=.
func (o *stepOptions) allowDevice(v string) error {
	name, rest, more := strings.Cut(v, ",")
	alias, ok := strings.CutPrefix(rest, "alias=")
	if name == "" || more && (!ok || alias == "" || strings.Contains(alias, ",")) {
		return fmt.Errorf("--allow device=%s: want device=NAME[,alias=ALIAS]", v)
	}
	if o.AllowDevices == nil {
		o.AllowDevices = map[string]string{}
	}
	o.AllowDevices[name] = name
	if more {
		o.AllowDevices[alias] = name
	}
	return nil
}

// parseSSH reads NAME or NAME=PATH[,PATH…][,raw=true].
func parseSSH(v string) (sshOption, error) {
	id, paths, ok := strings.Cut(v, "=")
	s := sshOption{ID: id}
	for p := range strings.SplitSeq(paths, ",") {
		var err error
		if raw, is := strings.CutPrefix(p, "raw="); is {
			s.Raw, err = strconv.ParseBool(raw)
		} else if p != "" {
			s.Paths = append(s.Paths, p)
		}
		if err != nil {
			return sshOption{}, fmt.Errorf("--ssh %q: raw=%s: want true or false", v, strings.TrimPrefix(p, "raw="))
		}
	}
	if id == "" || ok && len(s.Paths) == 0 {
		return sshOption{}, fmt.Errorf("--ssh %q: want default, or NAME=SOCKET, or NAME=KEY,...", v)
	}
	if s.Raw && len(s.Paths) != 1 {
		return sshOption{}, fmt.Errorf("--ssh %q: raw needs one socket", v)
	}
	return s, nil
}

// parseOutput reads type=TYPE[,dest=PATH][,NAME=VALUE…], a bare directory, or
// "-" for a tar on standard output.
func parseOutput(v string) (outputOption, error) {
	names, values, err := fields("output", v)
	if err != nil {
		return outputOption{}, err
	}
	if len(names) == 1 && !strings.Contains(v, "=") {
		if v == "-" {
			return outputOption{Type: "tar", Dest: "-"}, nil
		}
		return outputOption{Type: "local", Dest: v}, nil
	}
	o := outputOption{Attrs: map[string]string{}}
	for i, name := range names {
		switch name {
		case "type":
			o.Type = values[i]
		case "dest":
			o.Dest = values[i]
		default:
			o.Attrs[name] = values[i]
		}
	}
	switch o.Type {
	case "local", "tar", "oci", "docker", "image", "registry", "cacheonly":
	case "":
		return outputOption{}, fmt.Errorf("--output %q: no type; want type=TYPE[,dest=PATH]", v)
	default:
		return outputOption{}, fmt.Errorf("--output %q: unknown type %q", v, o.Type)
	}
	if o.Type == "local" && o.Dest == "-" {
		return outputOption{}, fmt.Errorf("--output %q: a directory cannot go to standard output", v)
	}
	if o.Type == "local" && o.Dest == "" {
		return outputOption{}, fmt.Errorf("--output %q: no directory; add dest=PATH", v)
	}
	return o, nil
}

// parseCache reads type=TYPE[,NAME=VALUE…], or a bare name, which is of a
// registry. Its errors do not repeat what may have keys in it.
func parseCache(flag, v string, export bool) (remote.Spec, error) {
	s := remote.Spec{Attrs: map[string]string{}}
	names, values, err := fields(flag, v)
	if err != nil {
		return s, fmt.Errorf("--%s: want type=TYPE,NAME=VALUE, separated by commas", flag)
	}
	if len(names) == 1 && !strings.Contains(v, "=") {
		s.Type, s.Attrs["ref"] = remote.TypeRegistry, v
	} else {
		for i, name := range names {
			if name == "type" {
				s.Type = values[i]
				continue
			}
			s.Attrs[name] = values[i]
		}
	}
	if s.Type == "" {
		return s, fmt.Errorf("--%s: no type; want type=TYPE,NAME=VALUE,...", flag)
	}
	if err := s.Check(export); err != nil {
		return s, fmt.Errorf("--%s: %w", flag, err)
	}
	return s, nil
}
