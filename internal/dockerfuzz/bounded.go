package main

import (
	"context"
	"fmt"
)

// checkBounded demands the same image of both drivers, to the last byte, where it
// does not tell when it was built.
func (f *fuzzer) checkBounded(ctx context.Context, c *Case, j *job, first outcome) (*finding, error) {
	if !f.modes || first.image == nil || c.linked() {
		return nil, nil
	}
	var images []*Image
	for _, driver := range []string{"overlay", "plain"} {
		b := f.mode(driver, false)
		b.bounded = true
		next, err := f.build(ctx, b, j)
		if err != nil {
			return nil, err
		}
		if next.image == nil {
			return &finding{"failure bounded", "with --reproducible it fails:\n" + next.log}, nil
		}
		images = append(images, next.image)
	}
	if a, b := images[0], images[1]; a.ID != b.ID {
		return &finding{"bounded", fmt.Sprintf("with --reproducible overlay gives %s and plain %s:\n%s", a.ID, b.ID, clip(c.compareModes(a, b)))}, nil
	}
	return nil, nil
}
