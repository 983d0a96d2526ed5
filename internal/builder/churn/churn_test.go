package churn

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/parser/ignore"
)

var now = time.Date(2025, 11, 3, 14, 2, 0, 0, time.UTC)

// missed are misses for files, one a string, ten minutes apart, up to now.
func missed(list ...string) []cache.Miss {
	var out []cache.Miss
	for i, files := range list {
		out = append(out, cache.Miss{At: now.Add(time.Duration(i-len(list)+1) * 10 * time.Minute), Files: strings.Fields(files)})
	}
	return out
}

// say is an advice in short.
func say(a Advice, ok bool) string {
	if !ok {
		return "nothing"
	}
	latest := ""
	if !a.Latest {
		latest = ", not the last"
	}
	return fmt.Sprintf("%d/%d%s: %s: %s", a.Runs, a.Of, latest, strings.Join(a.Files, " "), strings.Join(a.Lines, " "))
}

func TestAdvise(t *testing.T) {
	git := "/.git/index /.git/HEAD"
	tests := []struct {
		name   string
		misses []cache.Miss
		b      Build
		ignore string
		want   string
	}{
		{"nothing", nil, Build{}, "", "nothing"},
		{"twice", missed(git, git), Build{}, "", "nothing"},
		{"git", missed(git, git, git), Build{}, "", "3/3: .git: .git"},
		{"git, beside other files", missed(git+" /main.go", git+" /main.go", git+" /main.go"), Build{}, "", "3/3: .git main.go: "},
		{"git, and now and then another file", missed(git, "/a.go", git, git+" /b.go", git), Build{}, "", "3/5: .git: .git"},
		{"not the last time", missed(git, git, git, "/a.go"), Build{}, "", "3/4, not the last: .git: .git"},
		{"long ago", []cache.Miss{{At: now.Add(-2 * recent), Files: []string{"/.git/x"}}, missed("/.git/x")[0], missed("/.git/x")[0]}, Build{}, "", "nothing"},
		{"only five are looked at", missed(git, git, git, "/a", "/b", "/c", "/d"), Build{}, "", "nothing"},
		{"excluded meanwhile", missed(git, git, git, git+" /a.go"), Build{}, ".git\n", "nothing"},
		{"included again", missed(git, git, git), Build{}, ".git\n!.git/index\n", "3/3: .git: .git"},
		{"not known what", missed("", "", ""), Build{}, "", "nothing"},
		{"log file", missed("/debug.log", "/debug.log", "/debug.log"), Build{}, "", "3/3: debug.log: *.log"},
		{"log files", missed("/a.log", "/log/b.log", "/log/c.log"), Build{}, "", "3/3: *.log: **/*.log"},
		{"two kinds", missed("/a.log /.git/x", "/a.log", "/.git/x"), Build{}, "", "nothing"},
		{"two kinds, often", missed("/a.log /.git/x", "/a.log /.git/x", "/.git/x /a.log"), Build{}, "", "3/3: a.log .git: *.log .git"},
		{"deep", missed("/web/node_modules/a", "/web/node_modules/b", "/web/node_modules/"), Build{Words: Words("RUN npm ci")}, "",
			"3/3: web/node_modules: **/node_modules"},
		{"editor", missed("/src/.a.go.swp", "/src/a.go~", "/src/.a.go.swp", "/src/.a.go.swp"), Build{}, "", "3/4: src/.a.go.swp: **/*.swp"},
		{"a name that begins like a comment", missed("/#a#", "/#a#", "/#a#"), Build{}, "", "3/3: #a#: **/#*#"},
		{"the Dockerfile", missed("/Dockerfile", "/Dockerfile", "/Dockerfile"), Build{Own: []string{"/Dockerfile"}}, "", "3/3: Dockerfile: Dockerfile"},
		{"the Dockerfile, of another name", missed("/a [b]/D*", "/x", "/x"), Build{Own: []string{"/x"}}, "", "nothing"},
		{"source", missed("/main.go", "/main.go", "/main.go"), Build{}, "", "3/3: main.go: "},
		{"several sources", missed("/a.go", "/b.go", "/c.go"), Build{}, "", "nothing"},
		{"too many files", missed("/", "/", "/"), Build{}, "", "3/3: many files: "},

		{"copied by name", missed("/a.log", "/a.log", "/a.log"), Build{Sources: []string{"/", "/a.log"}}, "", "3/3: a.log: "},
		{"copied by a pattern", missed("/a.log", "/a.log", "/a.log"), Build{Sources: []string{"/", "/*.log"}}, "", "3/3: a.log: "},
		{"copied with all", missed("/a.log", "/a.log", "/a.log"), Build{Sources: []string{"/*"}}, "", "3/3: a.log: *.log"},
		{"something in it copied", missed("/.git/HEAD", "/.git/HEAD", "/.git/HEAD"), Build{Sources: []string{"/", "/.git/refs"}}, "", "3/3: .git: "},
		{"another one of the kind copied", missed("/a.log", "/a.log", "/a.log"), Build{Sources: []string{"/", "/b.log"}}, "", "3/3: a.log: a.log"},
		{"junk in a directory that is copied", missed("/src/a.swp", "/src/a.swp", "/src/a.swp"), Build{Sources: []string{"/src"}}, "", "3/3: src/a.swp: **/*.swp"},
		{"read by a command", missed("/a.log", "/a.log", "/a.log"), Build{Words: Words("RUN cat ./a.log")}, "", "3/3: a.log: "},
		{"git asked", missed(git, git, git), Build{Words: Words("RUN make VERSION=$(git describe --tags)")}, "", "3/3: .git: "},
		{"git only installed", missed(git, git, git), Build{Words: Words("RUN apk add --no-cache git make")}, "", "3/3: .git: .git"},
		{"modules of the context's", missed("/node_modules/a", "/node_modules/a", "/node_modules/a"), Build{}, "", "3/3: node_modules: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := ignore.Parse(strings.NewReader(tt.ignore))
			if err != nil {
				t.Fatal(err)
			}
			tt.b.Ignore, tt.b.Dir = m, t.TempDir()
			if got := say(tt.b.Advise(tt.misses, now)); got != tt.want {
				t.Errorf("Advise = %q, want %q", got, tt.want)
			}
			tt.b.Close()
		})
	}
}

// What is proposed is read as written, and excludes what it is for, whatever the
// names are.
func TestLinesExclude(t *testing.T) {
	for _, name := range []string{"a b", " lead", "trail ", "!not", "#hash", "st*r", "q?", "[x]", `back\slash`, "ünï", "a\nb", "a  b", "a\x1b[2Jb", "..."} {
		for _, f := range []string{"/" + name, "/d/" + name} {
			b := Build{Dir: t.TempDir(), Own: []string{f}}
			a, ok := b.Advise([]cache.Miss{{At: now, Files: []string{f}}, {At: now, Files: []string{f}}, {At: now, Files: []string{f}}}, now)
			if !ok {
				t.Errorf("Advise(%q) says nothing", f)
			}
			if len(a.Lines) == 0 {
				if strings.TrimSpace(name) == name && !strings.ContainsAny(name, "\n\x1b") && !strings.Contains(name, "  ") {
					t.Errorf("Advise(%q) has no line", f)
				}
				continue
			}
			m, err := ignore.Parse(strings.NewReader("*.x\n!" + "d\n" + strings.Join(a.Lines, "\n") + "\n"))
			if err != nil || !m.Match(f, false) || m.Match("/d/other", false) {
				t.Errorf("lines %q (%v) do not exclude %q, or more", a.Lines, err, f)
			}
		}
	}
}

func FuzzAdvise(f *testing.F) {
	f.Add("/.git/x", "/a.log", "COPY", "*.log\n!x")
	f.Add("/d/", "/dist/a[b]", "dist", "dist/\n/[!a]")
	f.Fuzz(func(t *testing.T, one, two, source, gitignore string) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, ".git"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, ".gitignore"), []byte(gitignore), 0o644); err != nil {
			t.Fatal(err)
		}
		clean := func(p string) string { return filepath.Clean("/" + p) }
		m := cache.Miss{At: now, Files: []string{clean(one), clean(two) + "/"}}
		b := Build{Dir: dir, Sources: []string{"/", clean(source)}}
		defer b.Close()
		a, ok := b.Advise([]cache.Miss{m, m, m}, now)
		if !ok || len(a.Lines) == 0 {
			return
		}
		matcher, err := ignore.Parse(strings.NewReader(strings.Join(a.Lines, "\n")))
		if err != nil {
			t.Fatalf("lines %q: %v", a.Lines, err)
		}
		for _, f := range m.Files {
			if p, isDir := strings.CutSuffix(f, "/"); !matcher.Match(p, isDir) {
				t.Errorf("lines %q do not exclude %q", a.Lines, f)
			}
		}
	})
}

func TestWords(t *testing.T) {
	got := Words(`RUN ["cat", "./logs/a.log"] && X=$(git -C . describe)|tee v~1`)
	want := []string{"RUN", "cat", ".", "logs", "a.log", "X", "git", "-C", ".", "describe", "tee", "v~1"}
	if !slices.Equal(got, want) {
		t.Errorf("Words = %q, want %q", got, want)
	}
}
