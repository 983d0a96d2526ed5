package builder

import (
	"context"
	"path/filepath"
	"time"

	"github.com/861fb494/build/executor/source"
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
		return source.NewGit(filepath.Join(j.Store.Dir(), "git"), j.gitOptions()).Date(ctx, s)
	case llb.HTTP:
		return j.httpSource().Date(ctx, s)
	}
	return nil, nil
}
