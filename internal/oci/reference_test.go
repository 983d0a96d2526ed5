package oci

import (
	"strings"
	"testing"

	"github.com/distribution/reference"
)

const zeros = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

// names are references and what nearly are.
var names = []string{
	"", "/", ":", "@", "a", "a:b", "a/b", "a/b:c", "A", "a/B", "A/b", "a:B", "a:", ":a", "a@", "a:b:c", "a//b", "a/", "/a",
	"node", "node:alpine", "node@" + zeros, "node:alpine@" + zeros, "node@" + zeros + ":x", "node@sha256:00", "node@SHA256:" + zeros[7:],
	"node@sha512:" + zeros[7:], "node@md5:" + zeros[7:39], "node@" + strings.ToUpper(zeros),
	"library/node", "docker.io/node", "docker.io/library/node", "docker.io/library/a/b", "index.docker.io/node", "index.docker.io/a/b", "docker.io/docker.io/x",
	"localhost/a", "localhost:5000/a:b", "localhost", "localhost:5000", "127.0.0.1:5000/a/b", "example.com/a", "example.com", "example.com:x/a", "example.com:/a",
	"[::1]:5000/a", "[::1]/a", "[]/a", "[::1/a", "::1]/a", "[g]/a", "[::1]x/a", "[::1]:/a", "a.b_c/d", "a_b.c/d", "-a.b/c", "a-.b/c", "a-b.c-d/e", "a..b/c", ".a/b", "a./b",
	"a.b", "a..b", "a_b", "a__b", "a___b", "a-b", "a---b", "a-_b", "-a", "a-", "_a", "a_", "a.-b", "a/b-/c", "a b", "a\n", "ä", "a/ä", "a:ä",
	strings.Repeat("a", 64), strings.Repeat("a", 65), strings.Repeat("g", 64), strings.Repeat("a", 247), strings.Repeat("a", 248), strings.Repeat("a/", 127) + "b", strings.Repeat("a/", 128) + "b",
	"a:" + strings.Repeat("t", 128), "a:" + strings.Repeat("t", 129), "a:.t", "a:-t", "a:_t", "a:t.-_T",
}

// compare fails unless ParseReference agrees with the package that defines the
// grammar.
func compare(t *testing.T, s string) {
	t.Helper()
	got, err := ParseReference(s)
	want, wantErr := reference.ParseNormalizedNamed(s)
	if wantErr == nil && reference.Domain(want) == "" {
		// It took what looks like a domain, "a_b.c", for a part of the path.
		if err == nil {
			t.Errorf("ParseReference(%q) = %+v, want an error", s, got)
		}
		return
	}
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("ParseReference(%q) = %+v, %v, want %v, %v", s, got, err, want, wantErr)
	}
	if err != nil {
		return
	}
	want = reference.TagNameOnly(want)
	if got.String() != want.String() || got.Domain != reference.Domain(want) || got.Path != reference.Path(want) || got.Familiar() != reference.FamiliarString(want) {
		t.Errorf("ParseReference(%q) = %+v (%s), want %s (%s)", s, got, got.Familiar(), want, reference.FamiliarString(want))
	}
	if again, err := ParseReference(got.String()); err != nil || again != got {
		t.Errorf("ParseReference(%q) = %+v, %v, want %+v", got.String(), again, err, got)
	}
}

func TestParseReference(t *testing.T) {
	for _, s := range names {
		compare(t, s)
	}
	for _, tt := range []struct {
		in   string
		want Reference
	}{
		{"node", Reference{Domain: "docker.io", Path: "library/node", Tag: "latest"}},
		{"localhost:5000/a:b@" + zeros, Reference{Domain: "localhost:5000", Path: "a", Tag: "b", Digest: zeros}},
		{"a/b@" + zeros, Reference{Domain: "docker.io", Path: "a/b", Digest: zeros}},
	} {
		if got, err := ParseReference(tt.in); err != nil || got != tt.want {
			t.Errorf("ParseReference(%q) = %+v, %v, want %+v", tt.in, got, err, tt.want)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range names {
		f.Add(s)
	}
	f.Fuzz(compare)
}
