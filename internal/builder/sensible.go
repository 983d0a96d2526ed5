package builder

import (
	"context"
	"errors"
	"fmt"

	"github.com/861fb494/build/cache/remote"
)

// RequestError is a Request that makes no sense, whatever is built.
type RequestError struct{ err error }

func (e *RequestError) Error() string { return e.err.Error() }
func (e *RequestError) Unwrap() error { return e.err }

// sensible fails for what is known to fail at the end.
func (j *job) sensible(context.Context) error {
	for _, o := range j.Outputs {
		if o.Type == "cacheonly" {
			continue
		}
		if err := o.Validate(j.Tags); err != nil {
			return &RequestError{err}
		}
		if j.Offline && o.Pushes() {
			return &RequestError{errors.New("--offline: pushing needs the network; leave one of them out")}
		}
		if j.Call != "" {
			continue
		}
		if err := o.Check(); err != nil {
			return err
		}
	}
	for _, s := range j.CacheTo {
		if j.Offline && s.Type != remote.TypeLocal && s.Type != remote.TypeInline {
			return &RequestError{fmt.Errorf("--offline: --cache-to type=%s needs the network; leave one of them out", s.Type)}
		}
	}
	return nil
}
