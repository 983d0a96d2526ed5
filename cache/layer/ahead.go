package layer

import (
	"iter"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache/tree"
)

const (
	// aheadFiles bounds the files of a batch that are open, aheadChanges the
	// changes. There are three batches at most: one is collected, one waits,
	// one is read.
	aheadFiles, aheadChanges = 32, 256
	// aheadBytes is how much of a file is asked for before it is read; from
	// there on the kernel reads ahead by itself.
	aheadBytes = 256 << 10
)

// upcoming is a change, with its content at hand.
type upcoming struct {
	tree.Change
	file *content // nil: it has no content
	err  error    // the file could not be opened, or the changes could not be read
}

// ahead opens the files of changes, and has the kernel fetch their first bytes,
// while those before them are read: an image is often pushed long after it was
// built, from a disk that takes its time for each file. It closes them after
// their turn. Nothing follows an error.
func ahead(changes iter.Seq2[tree.Change, error], files *opener) iter.Seq[*upcoming] {
	return func(yield func(*upcoming) bool) {
		batches, stop := make(chan []upcoming, 1), make(chan struct{})
		go func() {
			defer close(batches)
			collect(changes, files, func(b []upcoming) bool {
				select {
				case batches <- b:
					return true
				case <-stop:
					closeAll(b)
					return false
				}
			})
		}()
		defer func() {
			close(stop)
			for b := range batches {
				closeAll(b)
			}
		}()
		for b := range batches {
			for i := range b {
				if !yield(&b[i]) {
					closeAll(b[i:])
					return
				}
				closeAll(b[i : i+1])
			}
		}
	}
}

// collect sends the changes until send wants no more.
func collect(changes iter.Seq2[tree.Change, error], files *opener, send func([]upcoming) bool) {
	var batch []upcoming
	open := 0
	for c, err := range changes {
		u := upcoming{Change: c, err: err}
		if err == nil && hasContent(&c) {
			open++
			if u.file, u.err = files.open(&c); u.err == nil {
				u.file.fetch(min(c.Size, aheadBytes))
			}
		}
		batch = append(batch, u)
		if u.err != nil {
			break
		}
		if open == aheadFiles || len(batch) == aheadChanges {
			if !send(batch) {
				return
			}
			batch, open = nil, 0
		}
	}
	if len(batch) > 0 {
		send(batch)
	}
}

// hasContent reports whether c's file is to be read.
func hasContent(c *tree.Change) bool {
	return !c.Removed && c.Type() == unix.S_IFREG && c.HardLink == "" && c.Size > 0
}

func closeAll(batch []upcoming) {
	for _, u := range batch {
		if u.file != nil {
			u.file.Close()
		}
	}
}
