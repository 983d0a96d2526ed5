package cache

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
			return PruneOptions{Wanted: func(id string) []string {
				if id == old {
					return []string{"image x"}
				}
				return nil
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
	held := commit(t, first, nil, files{{"/f", "3"}})
	unused := commit(t, first, nil, files{{"/f", "2"}})
	put(t, first, Record{Key: key("a"), Layers: []oci.Layer{l}})
	first.Close(t.Context())
	user := open(t, dir)
	for _, id := range []string{l.ID, held.ID, unused.ID} {
		age(t, user, id, time.Hour)
	}
	if _, err := user.Step(key("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := user.Hold(held.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := user.Layer(unused.ID); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // the collector begins later than the user
	s := open(t, dir)
	if _, err := s.Prune(t.Context(), PruneOptions{All: true}); err != nil {
		t.Fatal(err)
	}
	have := left(t, s)
	if !have[l.ID] || !have[held.ID] || have[unused.ID] {
		t.Errorf("used layer is there: %v, held one: %v, unused one: %v, want true, true and false", have[l.ID], have[held.ID], have[unused.ID])
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
	if got, err := s.Prune(t.Context(), PruneOptions{All: true, Kinds: []string{KindMount}}); err != nil || len(got.Items) != 1 {
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
		if err != nil || len(unfinished()) != left || len(removed.Items) != 1-left {
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

// A file that several layers have counts for the one with which it would go, and
// is free only when all of them are.
func TestUsageOfSharedFiles(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	link := func(from, to string) {
		t.Helper()
		path := filepath.Join(first.driver.Dir(to), "big")
		if err := os.Link(filepath.Join(first.driver.Dir(from), "big"), path); err != nil {
			t.Fatal(err)
		}
	}
	var ids []string
	for i := range 3 {
		ids = append(ids, commit(t, first, nil, files{{"/own", strings.Repeat(strconv.Itoa(i), 10_000)}}).ID)
	}
	if err := os.WriteFile(filepath.Join(first.driver.Dir(ids[0]), "big"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	link(ids[0], ids[1])
	link(ids[0], ids[2])
	first.Close(t.Context())

	tests := []struct {
		name    string
		ages    [3]time.Duration // since the last use, in hours
		needed  map[int][]string
		has     int // which counts the file
		shared  int // which have something that serves several, as bits
		removed int // by a Prune, as bits
	}{
		{"what was used last has it", [3]time.Duration{3, 1, 2}, nil, 1, 0b010, 0b111},
		{"first of all the one that is needed", [3]time.Duration{3, 1, 2}, map[int][]string{0: {"image a"}}, 0, 0b001, 0b110},
		{"needed by several", [3]time.Duration{1, 2, 3}, map[int][]string{1: {"image a"}, 2: {"image a", "image b"}}, 1, 0b110, 0b001},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for i, id := range ids {
				age(t, first, id, tt.ages[i]*time.Hour)
			}
			wanted := func(id string) []string {
				for i := range ids {
					if ids[i] == id {
						return tt.needed[i]
					}
				}
				return nil
			}
			s := open(t, dir)
			items, err := s.Usage(t.Context(), wanted)
			if err != nil {
				t.Fatal(err)
			}
			for i, id := range ids {
				for _, item := range items {
					if item.ID != id {
						continue
					}
					if got, want := item.Size >= 1<<20, i == tt.has; got != want {
						t.Errorf("layer %d has the file: %v (%d bytes), want %v", i, got, item.Size, want)
					}
					if got, want := item.Shared > 0, tt.shared>>i&1 == 1; got != want {
						t.Errorf("layer %d is shared: %v (%d bytes), want %v", i, got, item.Shared, want)
					}
				}
			}
			p, err := s.Prune(t.Context(), PruneOptions{Wanted: wanted, DryRun: true})
			if err != nil {
				t.Fatal(err)
			}
			for i, id := range ids {
				got := slices.ContainsFunc(p.Items, func(item Item) bool { return item.ID == id })
				if want := tt.removed>>i&1 == 1; got != want {
					t.Errorf("Prune removes layer %d: %v, want %v", i, got, want)
				}
			}
		})
	}
}

// A download is as old as its last use, whatever time its server gave it, and a
// repository that is being used does not go.
func TestPruneDownloads(t *testing.T) {
	s := open(t, t.TempDir())
	old := time.Now().Add(-1000 * time.Hour)
	for _, name := range []string{"http/a-sha256-1", "git/b.git/HEAD", "git/b.lock"} {
		path := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	prune := func(o PruneOptions, want int) {
		t.Helper()
		p, err := s.Prune(t.Context(), o)
		if err != nil || len(p.Items) != want {
			t.Errorf("Prune(%+v) = %+v, %v, want %d items", o, p.Items, err, want)
		}
	}
	prune(PruneOptions{}, 0) // used while this process runs

	time.Sleep(20 * time.Millisecond)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.dir)
	prune(PruneOptions{OlderThan: time.Hour}, 0)
	release, err := holdFile(t.Context(), filepath.Join(s.dir, "git/b.lock"), unix.LOCK_EX, false)
	if err != nil {
		t.Fatal(err)
	}
	prune(PruneOptions{}, 1)
	release()
	prune(PruneOptions{}, 1)
	for _, name := range []string{"http/a-sha256-1", "git/b.git"} {
		if _, err := os.Lstat(filepath.Join(s.dir, name)); err == nil {
			t.Errorf("%s is there, want it removed", name)
		}
	}
}

// Records that nothing else removes go when they are old; that of a place whose
// step is still known does not.
func TestPruneStale(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, Record{Key: key("a"), Place: "kept", Layers: []oci.Layer{}})
	put(t, s, Record{Key: key("b"), Place: "gone", Layers: []oci.Layer{}})
	if err := os.Remove(s.stepPath(key("b"))); err != nil {
		t.Fatal(err)
	}
	id, err := s.PutResult([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	prune := func(want ...string) {
		t.Helper()
		if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, place := range []string{"kept", "gone"} {
			if _, err := s.Last(place); err == nil {
				got = append(got, place)
			}
		}
		if _, err := s.Result(id.String()); err == nil {
			got = append(got, "result")
		}
		if !slices.Equal(got, want) {
			t.Errorf("Prune leaves %q, want %q", got, want)
		}
	}
	stale := func(paths ...string) {
		t.Helper()
		old := time.Now().Add(-staleAfter)
		for _, path := range paths {
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	result := filepath.Join(s.dir, "results", id.Encoded())
	prune("kept", "gone", "result")
	stale(s.placePath("kept"), s.placePath("gone"), result)
	if again, err := s.PutResult([]byte("x")); err != nil || again != id {
		t.Fatalf("PutResult again = %s, %v, want %s", again, err, id)
	}
	prune("kept", "result")
	stale(result)
	prune("kept")
}
