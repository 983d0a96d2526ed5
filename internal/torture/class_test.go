package torture

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// names are what varies in a path of the state directory, and what it stands
// for. The longest come first.
var names = []struct {
	re   *regexp.Regexp
	name string
}{
	{regexp.MustCompile(`sha256-[0-9a-f]{64}(-[0-9a-f]{32})?`), "PULLED"},
	{regexp.MustCompile(`[0-9a-f]{64}(\.[0-9a-f]{16})?`), "H"},
	{regexp.MustCompile(`[0-9a-f]{40}`), "H"},
	{regexp.MustCompile(`[0-9a-f]{32}`), "H"},
	{regexp.MustCompile(`[0-9a-f]{12}-[0-9]+`), "ID"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "L"},
	{regexp.MustCompile(`steps/[0-9a-f]{2}\b`), "steps/HH"},
	{regexp.MustCompile(`trash/[A-Z0-9]{20,}`), "trash/T"},
	{regexp.MustCompile(`#[0-9]+|\.draft-[A-Z0-9]+`), "DRAFT"},
	{regexp.MustCompile(`-[0-9]{5,}`), "-R"},
	{regexp.MustCompile(`^snapshots/work/container-.*`), "snapshots/work/CONTAINER"},
	{regexp.MustCompile(`hooks/.*`), "hooks/SAMPLE"},
	{regexp.MustCompile(`objects/[0-9a-f]{2}/[0-9a-f]+`), "objects/HH/H"},
	{regexp.MustCompile(`(pack|tmp_obj|tmp_pack|incoming)[-_][0-9A-Za-z_]+`), "$1"},
}

// class is a path of the state directory with what varies left out: paths of
// one class are written and read by the same code.
func class(path string) string {
	for _, n := range names {
		path = n.re.ReplaceAllString(path, n.name)
	}
	for _, dir := range []string{"snapshots/layers/ID/", "snapshots/layers/PULLED/", "snapshots/work/ID/upper/", "snapshots/work/PULLED/upper/", "snapshots/trash/T/", "mounts/H/0/", "http/out-R/", "git/out-R/"} {
		if strings.HasPrefix(path, dir) {
			return dir + "FILE"
		}
	}
	return path
}

func TestClass(t *testing.T) {
	h := strings.Repeat("0123456789abcdef", 4)
	tests := []struct{ path, want string }{
		{"format", "format"},
		{"steps/0d/" + h, "steps/HH/H"},
		{"steps/0d/.tmp-0123456789ab-1234567", "steps/HH/.tmp-ID"},
		{"layers/0123456789ab-12/layer.json", "layers/ID/layer.json"},
		{"layers/sha256-" + h + "/entries", "layers/PULLED/entries"},
		{"snapshots/layers/0123456789ab-1/usr/bin/x", "snapshots/layers/ID/FILE"},
		{"leases/0123456789ab", "leases/L"},
		{"leases/0123456789ab.d/0123456789ab-3", "leases/L.d/ID"},
		{"images/blobs/sha256/" + h, "images/blobs/sha256/H"},
		{"images/ingest/#1234", "images/ingest/DRAFT"},
		{"pins/" + h[:32], "pins/H"},
	}
	for _, tt := range tests {
		if got := class(tt.path); got != tt.want {
			t.Errorf("class(%q) = %q, want %q", tt.path, got, tt.want)
		}
	}
}

// classes are the regular files of a state directory, by class.
func (r *root) classes(t *testing.T) (names []string, files map[string][]string) {
	t.Helper()
	files = map[string][]string{}
	err := filepath.WalkDir(r.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(r.dir, p)
		if err != nil {
			return err
		}
		c := class(rel)
		if files[c] == nil {
			names = append(names, c)
		}
		files[c] = append(files[c], p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names, files
}
