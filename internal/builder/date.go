package builder

import (
	"context"
	"time"

	"github.com/861fb494/build/llb"
)

// date is when s was last changed: see dockerfile.Options.
func (j *job) date(ctx context.Context, s llb.Source) (*time.Time, error) {
	switch s.Scheme {
	case llb.Local:
		if j.contexts.date == nil {
			return nil, nil
		}
		return j.contexts.date(ctx)
	case llb.Git:
		from := lockedGit{j.gitSource(), j.lock}
		s, err := from.Pin(ctx, s)
		if err != nil {
			return nil, err
		}
		return from.Date(ctx, s)
	case llb.HTTP:
		from := lockedHTTP{j.httpSource(), j.lock}
		s, err := from.Pin(ctx, s)
		if err != nil {
			return nil, err
		}
		return from.Date(ctx, s)
	}
	return nil, nil
}
