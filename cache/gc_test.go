package cache

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/internal/oci"
)

// age makes a layer one that was last used so long ago.
func age(t *testing.T, s *Store, id string, by time.Duration) {
	t.Helper()
	at := time.Now().Add(-by)
	if err := os.Chtimes(s.layerPath(id), at, at); err != nil {
		t.Fatal(err)
	}
}

func left(t *testing.T, s *Store) map[string]bool {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, e := range list {
		out[e.Name()] = true
	}
	return out
}

func TestPrune(t *testing.T) {
	big := strings.Repeat("x", 100_000)
	tests := []struct {
		name string
		o    func(old, older, new string) PruneOptions
		gone string // which of old, older, new
	}{
		{"all that nothing needs", func(_, _, _ string) PruneOptions { return PruneOptions{} }, "old older new"},
		{"older than", func(_, _, _ string) PruneOptions { return PruneOptions{OlderThan: 3 * time.Hour} }, "older"},
		{"wanted", func(old, _, _ string) PruneOptions {
			return PruneOptions{Wanted: func(id string) string {
				if id == old {
					return "image x"
				}
				return ""
			}}
		}, "older new"},
		{"another kind", func(_, _, _ string) PruneOptions { return PruneOptions{Kinds: []string{KindMount}} }, ""},
		{"told only", func(_, _, _ string) PruneOptions { return PruneOptions{DryRun: true} }, ""},
		{"keep all", func(_, _, _ string) PruneOptions { return PruneOptions{Keep: 1 << 40} }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			first := open(t, dir)
			ids := map[string]string{}
			for _, name := range []string{"older", "old", "new"} {
				l := commit(t, first, nil, files{{"/" + name, big}})
				put(t, first, Record{Key: key(map[string]string{"old": "a", "older": "b", "new": "c"}[name]), Layers: []oci.Layer{l}})
				ids[name] = l.ID
			}
			age(t, first, ids["older"], 5*time.Hour)
			age(t, first, ids["old"], 2*time.Hour)
			age(t, first, ids["new"], time.Hour)
			first.Close(t.Context())

			s := open(t, dir)
			if _, err := s.Prune(t.Context(), tt.o(ids["old"], ids["older"], ids["new"])); err != nil {
				t.Fatal(err)
			}
			have := left(t, s)
			for name, id := range ids {
				want := !strings.Contains(" "+tt.gone+" ", " "+name+" ")
				if have[id] != want {
					t.Errorf("layer %q is there: %v, want %v", name, have[id], want)
				}
				if _, err := s.Step(key(map[string]string{"old": "a", "older": "b", "new": "c"}[name])); (err == nil) != want {
					t.Errorf("Step(%q) = %v, want it to be found: %v", name, err, want)
				}
			}
		})
	}
}

// Keep removes what was used longest ago, and no more than it must.
func TestPruneKeeps(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	var ids []string
	for i := range 4 {
		l := commit(t, first, nil, files{{"/f", strings.Repeat(strconv.Itoa(i), 1<<20)}})
		age(t, first, l.ID, time.Duration(10-i)*time.Hour)
		ids = append(ids, l.ID)
	}
	first.Close(t.Context())
	s := open(t, dir)
	items, err := s.Usage(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, i := range items {
		total += i.Size
	}
	if _, err := s.Prune(t.Context(), PruneOptions{Keep: total - (3 << 19)}); err != nil {
		t.Fatal(err)
	}
	have := left(t, s)
	for i, id := range ids {
		if want := i >= 2; have[id] != want {
			t.Errorf("layer %d is there: %v, want %v", i, have[id], want)
		}
	}
}

// What a process that runs has used is not collected, however old it is.
func TestPruneLeavesWhatIsUsed(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	l := commit(t, first, nil, files{{"/f", "1"}})
	unused := commit(t, first, nil, files{{"/f", "2"}})
	put(t, first, Record{Key: key("a"), Layers: []oci.Layer{l}})
	first.Close(t.Context())
	user := open(t, dir)
	age(t, user, l.ID, time.Hour)
	age(t, user, unused.ID, time.Hour)
	if _, err := user.Step(key("a")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // the collector begins later than the user
	s := open(t, dir)
	if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	have := left(t, s)
	if !have[l.ID] || have[unused.ID] {
		t.Errorf("used layer is there: %v, unused one: %v, want true and false", have[l.ID], have[unused.ID])
	}
}

// The sizes add up to what du says, hard links counted once.
func TestUsageIsTrue(t *testing.T) {
	if _, err := exec.LookPath("du"); err != nil {
		t.Skip("needs du")
	}
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 5 {
		commit(t, s, nil, files{{"/f", strings.Repeat(strconv.Itoa(i), 300_000)}, {"/g", "small"}})
	}
	mount, release, err := s.CacheMount(t.Context(), "m", Shared, MountInit{Fill: func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 50_000), 0o600); err != nil {
			return err
		}
		return os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	}})
	if err != nil {
		t.Fatal(err)
	}
	items, err := s.Usage(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, i := range items {
		total += i.Size
		if i.Kind == KindMount && (i.ID != "m" || i.Needed == "" || i.Size > 64<<10) {
			t.Errorf("mount %s: %+v, want id m, in use, its file counted once", mount, i)
		}
	}
	release()
	out, err := exec.Command("du", "-s", "--block-size=1", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	du, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if diff := total - du; diff > du/50 || diff < -du/50 {
		t.Errorf("Usage adds up to %d, du says %d", total, du)
	}
	if got, err := s.Prune(t.Context(), PruneOptions{All: true, Kinds: []string{KindMount}}); err != nil || len(got) != 1 {
		// It was used since this process began: by this process, which let go of it.
		if _, serr := os.Lstat(mount); serr != nil {
			t.Errorf("Prune of mounts = %v, %v", got, err)
		}
	}
}

// What a killed process has left of a mount goes with the next Prune, and not what
// a process is making now.
func TestPruneUnfinishedMounts(t *testing.T) {
	s := open(t, t.TempDir())
	p, _ := start(t, s.Dir(), "fill", "id")
	unfinished := func() []string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(s.Dir(), "mounts", "*", "0.new"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	prune := func(left int) {
		t.Helper()
		removed, err := s.Prune(t.Context(), PruneOptions{})
		if err != nil || len(unfinished()) != left || len(removed) != 1-left {
			t.Errorf("Prune = %v, %v, and leaves %v, want it to leave %d", removed, err, unfinished(), left)
		}
	}
	if n := len(unfinished()); n != 1 {
		t.Fatalf("%d mounts are being made, want 1", n)
	}
	prune(1)
	p.kill()
	if err := s.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	lock := strings.TrimSuffix(unfinished()[0], ".new") + ".lock"
	if err := os.Chtimes(lock, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	prune(0)
}
