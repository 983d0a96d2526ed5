package executor

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/internal/oci"
)

// Listings compare by path, in whatever order they are.
func TestChanged(t *testing.T) {
	// A file of a listing is its path and a letter that stands for its sum.
	tests := []struct{ name, before, after, want string }{
		{"the same", "/=d /a=1 /b=1", "/=d /a=1 /b=1", ""},
		{"changed", "/=d /a=1 /b=1 /c=1", "/=d /a=1 /b=2 /c=1", "/b changed"},
		{"first and last", "/a=1 /b=1 /c=1", "/a=2 /b=1 /c=2", "/a changed, /c changed"},
		{"new", "/a=1 /c=1", "/a=1 /b=1 /c=1 /d=1", "/b is new, /d is new"},
		{"gone", "/a=1 /b=1 /c=1", "/b=1", "/a is gone, /c is gone"},
		{"of nothing", "/x=1", "/y=1", "/y is new, /x is gone"},
		{"directories last", "/=d /a=d /a/x=1 /b=1", "/=e /a=e /a/x=2 /b=2", "/a/x changed, /b changed, / changed, /a changed"},
		{"sorted by components", "/a=d /a/x=1 /a.b=1", "/a=d /a/x=1 /a.b=2", "/a.b changed"},
		{"two sources", "/z=1 /a=1 /b=1", "/z=1 /a=2 /b=1", "/a changed"},
		{"another order", "/z=1 /a=1 /b=1", "/a=1 /b=2 /z=1", "/b changed"},
		{"another order, gone and new", "/z=1 /a=1 /b=1", "/b=1 /c=1 /z=2", "/c is new, /z changed, /a is gone"},
		{"twice", "/a=1 /a=1 /b=1", "/a=1 /a=1 /b=2", "/b changed"},
		{"twice, and changed", "/a=1 /a=1", "/a=2 /a=2", "/a changed, /a changed"},
	}
	s := newRig(t).store
	for i, tt := range tests {
		put := func(which, files string) oci.Digest {
			w := new(cache.ListingWriter)
			for _, f := range strings.Fields(files) {
				p, sum, _ := strings.Cut(f, "=")
				w.Add(cache.Listed{Path: p, Sum: [8]byte{sum[0]}, ModTime: time.Unix(5, 0)})
			}
			d := oci.Digest(fmt.Sprintf("blake3:%s%063d", which, i))
			if err := s.PutListing(d, w); err != nil {
				t.Fatal(err)
			}
			return d
		}
		var got []string
		for _, f := range (Records{Store: s}).Changed(put("a", tt.before), put("b", tt.after)) {
			switch {
			case f.Gone:
				got = append(got, f.Path+" is gone")
			case f.Was.IsZero():
				got = append(got, f.Path+" is new")
			default:
				got = append(got, f.Path+" changed")
			}
		}
		if got := strings.Join(got, ", "); got != tt.want {
			t.Errorf("%s: Changed = %q, want %q", tt.name, got, tt.want)
		}
	}
}
