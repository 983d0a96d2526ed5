package pick

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/861fb494/build/cache/tree"
)

// vanishing lists files that are gone when they are looked at.
type vanishing struct{ *tree.Tree }

func (v vanishing) ReadDir(p string) ([]string, error) {
	names, err := v.Tree.ReadDir(p)
	names = append(slices.Clone(names), "gone")
	slices.Sort(names)
	return names, err
}

func TestVanishing(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "sub/b"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := tree.New("", []string{dir})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	all := Selection{Sources: []string{"/"}}
	want, err := walked(t, tr, all)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := walked(t, vanishing{tr}, all); err != nil || got != want {
		t.Errorf("Walk of a directory from which files vanish = %q, %v, want %q", got, err, want)
	}
	// What is named itself has to be there.
	if got, err := walked(t, vanishing{tr}, Selection{Sources: []string{"/gone"}}); err == nil {
		t.Errorf("Walk of /gone = %q, want an error", got)
	}
}
