package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"

	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/parser"
)

// setEpoch reads SOURCE_DATE_EPOCH: seconds, or a word for whose date it is.
// Where that has none, such as a directory, there is none, as with BuildKit; or
// with Dated it is 0, as if an ARG above the first FROM said so.
// Specification: https://reproducible-builds.org/specs/source-date-epoch/.
func (l *lowering) setEpoch(ctx context.Context, stages []parser.Stage) error {
	v, given := l.args[epochArg]
	if !given {
		v, _ = l.scopes[nil].globals.Get(epochArg)
	}
	if v != "" {
		var err error
		if l.epoch, err = l.epochOf(ctx, v, stages); err != nil {
			return err
		}
	}
	dated := l.epoch == nil && l.opts.Dated
	if dated {
		t := time.Unix(0, 0).UTC()
		l.epoch = &t
	}
	value := ""
	if l.epoch != nil {
		value = strconv.FormatInt(l.epoch.Unix(), 10)
	}
	if value == v && v != "" {
		return nil
	}
	// ARGs see the seconds; a variable without a value is none.
	for _, s := range l.scopes {
		_, arg := s.args[epochArg]
		_, global := s.globals.Get(epochArg)
		switch {
		case value == "":
			delete(s.args, epochArg)
			s.globals = s.globals.unset(epochArg)
		case arg:
			s.args[epochArg] = value
		}
		if (global || dated) && value != "" {
			s.globals = s.globals.set(epochArg, value)
		}
	}
	if value == "" {
		delete(l.args, epochArg)
	} else if given {
		l.args[epochArg] = value
	}
	return nil
}

func (l *lowering) epochOf(ctx context.Context, v string, stages []parser.Stage) (*time.Time, error) {
	if sec, err := strconv.ParseInt(v, 10, 64); err == nil {
		t := time.Unix(sec, 0).UTC()
		if y := t.Year(); y < 1 || y > 9999 || t.IsZero() { // RFC 3339 has no others
			return nil, l.file.Error(fmt.Errorf("invalid SOURCE_DATE_EPOCH: %s: an image cannot be of the year %d", v, y), nil)
		}
		return &t, nil
	}
	date := l.opts.Date
	if date == nil {
		date = func(context.Context, llb.Source) (*time.Time, error) { return nil, nil }
	}
	if v == "context" {
		t, err := date(ctx, llb.Source{Scheme: llb.Local, Ref: mainContext})
		return t, l.epochError(v, err, nil)
	}
	if value, err := l.namedContext(v, nil); err == nil && value != "" {
		src, ok, err := remoteSource(value)
		if err != nil || !ok {
			return nil, l.epochError(v, err, nil) // a directory or an image has no date
		}
		t, err := date(ctx, src)
		return t, l.epochError(v, err, nil)
	}
	for _, s := range stages {
		if !strings.EqualFold(s.Name, v) {
			continue
		}
		src, err := l.dateSource(s)
		if err != nil {
			return nil, l.file.Error(err, s.Location)
		}
		t, err := date(ctx, src)
		return t, l.epochError(v, err, s.Location)
	}
	return nil, l.file.Error(fmt.Errorf("invalid SOURCE_DATE_EPOCH: %s", v), nil)
}

func (l *lowering) epochError(v string, err error, at []parser.Range) error {
	if err == nil {
		return nil
	}
	return l.file.Error(fmt.Errorf("SOURCE_DATE_EPOCH=%s: %w", v, err), at)
}

// remoteSource is the repository or the file that a URL names; ok is false for
// what has no URL.
func remoteSource(s string) (src llb.Source, ok bool, err error) {
	if src, ok, err := gitSource(s); ok || err != nil {
		return src, ok, err
	}
	if !isHTTP(s) {
		return src, false, nil
	}
	return llb.Source{Scheme: llb.HTTP, Ref: s, Filename: urlName(s)}, true, nil
}

// dateSource is what a stage adds whose date SOURCE_DATE_EPOCH is to be: one
// repository or one URL, upon nothing.
func (l *lowering) dateSource(s parser.Stage) (src llb.Source, err error) {
	scope := l.scopes[s.File]
	vars := scope.globals.unset(epochArg)
	base, _, err := l.lex.ProcessWord(s.BaseName, vars)
	if err != nil {
		return src, err
	}
	if base != scratch {
		return src, errors.New("SOURCE_DATE_EPOCH stage must use FROM scratch")
	}
	const one = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD"
	found := false
	for _, i := range s.Instructions {
		switch c := i.Command.(type) {
		case *instructions.ArgCommand:
			for _, kv := range c.Args {
				if v, ok := scope.args[kv.Key]; ok {
					vars = vars.set(kv.Key, v)
				} else if kv.Value != nil {
					v, _, err := l.lex.ProcessWord(*kv.Value, vars)
					if err != nil {
						return src, err
					}
					vars = vars.set(kv.Key, v)
				}
			}
		case *instructions.AddCommand:
			if found || len(c.SourceContents) > 0 || len(c.SourcePaths) != 1 {
				return src, errors.New(one)
			}
			if src, err = l.addedSource(c, vars); err != nil {
				return src, err
			}
			found = true
		default:
			return src, fmt.Errorf("SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported %s instruction", c.Name())
		}
	}
	if !found {
		return src, errors.New(one)
	}
	return src, nil
}

func (l *lowering) addedSource(c *instructions.AddCommand, vars env) (llb.Source, error) {
	word, _, err := l.lex.ProcessWord(c.SourcePaths[0], vars)
	if err != nil {
		return llb.Source{}, err
	}
	src, ok, err := remoteSource(word)
	if err != nil {
		return src, err
	}
	if !ok {
		return src, errors.New("SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD")
	}
	if c.Checksum == "" {
		return src, nil
	}
	sum, _, err := l.lex.ProcessWord(c.Checksum, vars)
	if err != nil {
		return src, err
	}
	if src.Scheme == llb.Git {
		src.Git.Checksum = sum
		return src, nil
	}
	src.Checksum, err = digest.Parse(sum)
	return src, err
}
