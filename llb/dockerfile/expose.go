package dockerfile

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

func (x *step) expose(s state, c *instructions.ExposeCommand) (state, error) {
	var ports []string
	for _, word := range c.Ports {
		words, err := x.lex.ProcessWords(word, s.env)
		if err != nil {
			return s, err
		}
		for _, w := range words {
			p, err := x.ports(w)
			if err != nil {
				return s, err
			}
			ports = append(ports, p...)
		}
	}
	exposed := maps.Clone(s.image.Config.ExposedPorts)
	if exposed == nil {
		exposed = map[string]struct{}{}
	}
	for _, p := range ports {
		exposed[p] = struct{}{}
	}
	s.image.Config.ExposedPorts = exposed
	return s.commit(fmt.Sprintf("EXPOSE %v", ports), false, x.epoch), nil
}

// ports reads "[[ip:]host:]port[-port][/protocol]" and returns each port as
// "port/protocol". Address and host's port are checked and then not used.
func (x *step) ports(spec string) ([]string, error) {
	ip, host, port := splitPort(spec)
	port, proto, _ := strings.Cut(port, "/")
	if port == "" {
		return nil, fmt.Errorf("invalid port: %q: no port specified", spec)
	}
	lower := strings.ToLower(proto)
	switch lower {
	case "":
		lower, proto = "tcp", "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("invalid port: %q: invalid proto: %s", spec, proto)
	}
	if proto != lower {
		x.lint.Run(&linter.RuleExposeProtoCasing, x.Location(), linter.RuleExposeProtoCasing.Format(spec))
	}
	if ip != "" || host != "" {
		x.lint.Run(&linter.RuleExposeInvalidFormat, x.Location(), linter.RuleExposeInvalidFormat.Format(spec))
	}
	if ip != "" {
		if _, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")); err != nil {
			return nil, fmt.Errorf("invalid IP address: %s", ip)
		}
	}
	first, last, err := portRange(port)
	if err != nil {
		return nil, fmt.Errorf("invalid containerPort: %s: %w", port, err)
	}
	if host != "" {
		from, to, err := portRange(host)
		if err != nil {
			return nil, fmt.Errorf("invalid hostPort: %s: %w", host, err)
		}
		if last != first && last-first != to-from {
			return nil, fmt.Errorf("invalid ranges specified for container and host Ports: %s and %s", port, host)
		}
	}
	out := make([]string, 0, last-first+1)
	for p := first; p <= last; p++ {
		out = append(out, strconv.Itoa(p)+"/"+lower)
	}
	return out, nil
}

// splitPort takes a specification apart at its last two colons.
func splitPort(spec string) (ip, host, port string) {
	i := strings.LastIndexByte(spec, ':')
	if i < 0 {
		return "", "", spec
	}
	rest, port := spec[:i], spec[i+1:]
	if i = strings.LastIndexByte(rest, ':'); i < 0 {
		return "", rest, port
	}
	return rest[:i], rest[i+1:], port
}

func portRange(s string) (first, last int, err error) {
	from, to, isRange := strings.Cut(s, "-")
	if first, err = portNumber(from); err != nil || !isRange {
		return first, first, err
	}
	if last, err = portNumber(to); err == nil && last < first {
		err = errors.New("the range ends before it begins")
	}
	return first, last, err
}

func portNumber(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 65535 {
		return 0, fmt.Errorf("%q is no port number (0 to 65535)", s)
	}
	return n, nil
}
