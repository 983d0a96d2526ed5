package parser

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/util/suggest"
	"github.com/tonistiigi/go-csvvalue"
)

// RunFlags are the flags of RUN that BuildKit's package instructions does not
// read.
type RunFlags struct {
	Devices []Device
	Timeout time.Duration // --timeout=30s; 0: none
	NoCache bool          // --no-cache
	TTL     time.Duration // --no-cache=12h: its result is good for so long; 0: for ever
}

// Device is a --device=NAME[,required]; NAME is "vendor.example/class=name" or
// a class only.
// Specification: https://github.com/cncf-tags/container-device-interface.
type Device struct {
	Name     string
	Required bool
}

// extensions are what a file must ask for by a comment above its first
// instruction, so that nobody writes a Dockerfile that other builders
// cannot read without knowing it:
//
//	# build: timeout, no-cache
type extensions struct{ timeout, noCache, include bool }

func findExtensions(data []byte) extensions {
	var e extensions
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' {
			break
		}
		words, ok := strings.CutPrefix(strings.TrimSpace(strings.TrimPrefix(string(line), "#")), "build:")
		if !ok {
			continue
		}
		for _, w := range strings.FieldsFunc(words, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }) {
			e.timeout = e.timeout || w == "timeout"
			e.noCache = e.noCache || w == "no-cache"
			e.include = e.include || w == include
		}
	}
	return e
}

// takeRunFlags takes the flags that instructions would not know off a RUN.
func takeRunFlags(n *parser.Node, ext extensions) (RunFlags, error) {
	var f RunFlags
	if !strings.EqualFold(n.Value, command.Run) {
		return f, nil
	}
	kept := n.Flags[:0:0]
	for i, arg := range n.Flags {
		if arg == "--" {
			kept = append(kept, n.Flags[i:]...)
			break
		}
		name, value, hasValue := strings.Cut(arg, "=")
		var err error
		switch name {
		case "--device":
			var d Device
			d, err = parseDevice(value)
			f.Devices = append(f.Devices, d)
		case "--timeout":
			err = parseTimeout(&f, value, hasValue, ext)
		case "--no-cache":
			err = parseNoCache(&f, value, hasValue, ext)
		case "--mount", "--network", "--security":
			kept = append(kept, arg)
		default:
			known := []string{"mount", "network", "security", "device"}
			err = suggest.WrapError(fmt.Errorf("unknown flag: %s", name), strings.TrimPrefix(name, "--"), known, true)
		}
		if err != nil {
			return f, err
		}
	}
	n.Flags = kept
	return f, nil
}

func parseTimeout(f *RunFlags, value string, hasValue bool, ext extensions) error {
	if !ext.timeout {
		return notAsked("unknown flag: --timeout", "timeout")
	}
	d, err := time.ParseDuration(value)
	if !hasValue || err != nil || d <= 0 {
		return fmt.Errorf("--timeout=%s: want a duration such as 90s or 10m", value)
	}
	f.Timeout = d
	return nil
}

func parseNoCache(f *RunFlags, value string, hasValue bool, ext extensions) error {
	if !ext.noCache {
		return notAsked("unknown flag: --no-cache", "no-cache")
	}
	if b, err := strconv.ParseBool(value); err == nil || !hasValue {
		f.NoCache = b || !hasValue
		return nil
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < time.Second {
		return fmt.Errorf("--no-cache=%s: want a duration of at least a second, such as 12h", value)
	}
	f.TTL = d
	return nil
}

func notAsked(what, word string) error {
	return fmt.Errorf("%s (other builders do not have it; to use it, write the line \"# build: %s\" above the first instruction)", what, word)
}

func parseDevice(value string) (Device, error) {
	var d Device
	fields, err := csvvalue.Fields(value, nil)
	if err != nil {
		return d, fmt.Errorf("--device=%s: %w", value, err)
	}
	for _, field := range fields {
		key, v, pair := strings.Cut(field, "=")
		switch key = strings.ToLower(key); {
		case key == "required" && !pair:
			d.Required = true
		case key == "required":
			if d.Required, err = strconv.ParseBool(v); err != nil {
				return d, fmt.Errorf("invalid value for required: %s", v)
			}
		case key == "name" && pair:
			if d.Name != "" {
				return d, fmt.Errorf("device name already set to %s", d.Name)
			}
			d.Name = v
		case d.Name == "":
			d.Name = field
		case !pair:
			return d, fmt.Errorf("invalid field '%s' must be a key=value pair", field)
		default:
			err := fmt.Errorf("unexpected key '%s' in '%s'", key, field)
			return d, suggest.WrapError(err, key, []string{"name", "required"}, true)
		}
	}
	if d.Name == "" {
		return d, errors.New("--device needs a name")
	}
	return d, nil
}
