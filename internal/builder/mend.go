package builder

import (
	"context"
	"errors"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/exporter"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
)

// maxMended is how often a build begins again because of damaged layers: a disk
// that damages them as they are made is not to keep it for ever.
const maxMended = 3

// isDamage reports whether err says that a layer or a blob which is here is not
// what it was.
func isDamage(err error) bool {
	var bad *cache.DamagedError
	return errors.As(err, &bad) && bad.Layer != "" || errors.Is(err, exporter.ErrChanged) || errors.Is(err, image.ErrDamaged)
}

// shown is executor.Shown, for errors of exporters too.
func shown(err error) error {
	if isDamage(err) {
		return context.Canceled
	}
	return executor.Shown(err)
}

// mend drops the damaged layers among those that the build has used: where there
// is one, there may be others, and which it was that made an export differ is not
// known before all are read.
func (j *job) mend(ctx context.Context, err error) {
	found := j.Store.Audit(ctx)
	if len(found) == 0 {
		found = []error{err}
	}
	for _, f := range found {
		j.Sink.Emit(progress.Warning{Message: "it is dropped and made anew: " + f.Error()})
	}
}

// glanced is how many bytes of lists of files are gone through before an image is
// put out or run: some 2000 files, which takes five milliseconds.
const glanced = 128 << 10

// glance looks at the files of layers that were found rather than made, before it
// is said that an image consists of them: as many as can be looked at in a time
// that nobody notices. Who reads a layer to make another looks at all of it.
func (b *Builder) glance(ctx context.Context, layers []oci.Layer) error {
	var few []oci.Layer
	left := int64(glanced)
	for _, l := range layers {
		if n := b.Store.Unseen(l); n <= left {
			left -= n
			few = append(few, l)
		}
	}
	return b.Store.Intact(ctx, few)
}
