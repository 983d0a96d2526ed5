// Package internal_test holds the house's plan: which package may import
// which. See docs/architecture.md.
package internal_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/861fb494/build"

// room is a package's place. It may import packages of lower floors, its own
// sub-packages, and those in also.
type room struct {
	floor int
	also  []string // neighbours on the same floor, each for a reason
}

// testsOnly is the floor of what only tests and tools of the project import.
const testsOnly = 99

var rooms = map[string]room{
	"internal/blake":            {floor: 0, also: []string{"internal/oci"}}, // of whose digests it makes some
	"internal/flock":            {floor: 0},
	"internal/gunzip":           {floor: 0},
	"internal/hugepage":         {floor: 0},
	"internal/readahead":        {floor: 0},
	"internal/oci":              {floor: 0},
	"internal/ordered":          {floor: 0},
	"internal/progress":         {floor: 0, also: []string{"internal/oci"}},      // a step is named by a digest
	"internal/progress/display": {floor: 0, also: []string{"internal/progress"}}, // draws its events
	"parser":                    {floor: 1},
	"parser/ignore":             {floor: 1},
	"llb":                       {floor: 1},
	"internal/lockfile":         {floor: 1},
	"internal/registry":         {floor: 1},
	"cache":                     {floor: 1},
	"cache/tree":                {floor: 1},                                                             // directory trees and what names them; also read by floors 2 and 3
	"cache/layer":               {floor: 1, also: []string{"cache/tree"}},                               // a tree's changes as a tar, and back
	"cache/shelf":               {floor: 1},                                                             // directories of layers on disk
	"cache/overlay":             {floor: 1, also: []string{"cache/layer", "cache/shelf", "cache/tree"}}, // the drivers
	"cache/plain":               {floor: 1, also: []string{"cache/layer", "cache/shelf", "cache/tree"}},
	"cache/drivertest":          {floor: testsOnly},                                      // the drivers' contract
	"cache/chunked":             {floor: 1, also: []string{"cache/layer", "cache/tree"}}, // whose lists of files it uses
	"cache/image":               {floor: 1},
	"cache/image/archive":       {floor: 1, also: []string{"cache/image"}}, // reads images into it
	"executor/sandbox":          {floor: 1},
	"executor/sandbox/cgroup":   {floor: 1},
	"executor/sandbox/child":    {floor: 1, also: []string{"executor/sandbox/stub"}}, // leaves the rest to one
	"executor/sandbox/seccomp":  {floor: 1},
	"executor/sandbox/stub":     {floor: 1},                               // programs that make given system calls
	"executor/archive":          {floor: 1, also: []string{"cache/tree"}}, // what an ADD unpacks
	"executor/cdi":              {floor: 1},
	"executor/network":          {floor: 1},
	"executor/pick":             {floor: 1, also: []string{"cache/tree"}}, // what a COPY takes out of a tree
	"exporter/compress":         {floor: 1},
	"cache/remote":              {floor: 2},
	"cache/remote/gha":          {floor: 1},         // a client of that service
	"cache/remote/gha/ghatest":  {floor: testsOnly}, // a stand-in for it
	"cache/remote/s3":           {floor: 1},         // a client of such stores
	"llb/dockerfile":            {floor: 2},
	"solver":                    {floor: 2},
	"executor/source":           {floor: 2},
	"exporter":                  {floor: 2},
	"executor":                  {floor: 3},
	"internal/builder":          {floor: 4},
	"internal/builder/churn":    {floor: 2},
	"internal/container":        {floor: 4},
	"cmd/build":                 {floor: 6},
	"internal/bench":            {floor: testsOnly, also: []string{"internal/testbase"}}, // measures builders beside each other
	"internal/bench/chart":      {floor: testsOnly},                                      // its pictures
	"internal/bench/limits":     {floor: testsOnly},                                      // what a machine can do
	"internal/dockerfuzz":       {floor: testsOnly},                                      // builds generated Dockerfiles; shares no code with what it tests
	"internal/noskip":           {floor: testsOnly},                                      // runs go test
	"internal/testbase":         {floor: testsOnly},                                      // base images for tests and the demo
	"internal/testbase/mkbase":  {floor: testsOnly, also: []string{"internal/testbase"}}, // its command
	"internal/testbase/house":   {floor: testsOnly},                                      // a machine of their own for tests
	"internal/torture":          {floor: testsOnly},                                      // kills, damages and crowds the builder
	"internal/interpose":        {floor: testsOnly},                                      // decides on a program's system calls
}

// rule forbids imports whatever the floors are. Names match themselves and
// what lies below them.
type rule struct {
	packages []string
	except   []string
	never    []string
	why      string
}

var never = []rule{
	{packages: []string{"cache"}, except: []string{"cache/remote"}, never: []string{"llb", "solver", "executor"}, why: "storage knows no graph"},
	{packages: []string{"solver"}, never: []string{"cache", "executor"}, why: "the solver is generic"},
	{packages: []string{"exporter"}, never: []string{"solver", "executor"}, why: "an exporter gets a finished result"},
	{packages: []string{"executor/sandbox", "executor/network"}, never: []string{"cache", "cmd", "exporter", "internal/builder", "internal/container", "internal/progress", "internal/registry", "llb", "parser", "solver"}, why: "a sandbox knows only internal/oci"},
}

// pure are the packages that open nothing; what they import of ours must not
// either.
var pure = []string{"parser", "llb"}

// doesIO reports whether a package of the standard library, or x/sys, reaches
// the world outside.
func doesIO(imported string) bool {
	switch imported {
	case "net/netip", "net/url", "net/textproto", "net/mail": // values only
		return false
	case "io/ioutil", "syscall", "plugin", "log/syslog", "database/sql", "testing/fstest":
		return true
	}
	return under(imported, "os") || under(imported, "net") || under(imported, "golang.org/x/sys") || under(imported, "golang.org/x/net")
}

// under reports whether p is parent or lies below it.
func under(p, parent string) bool { return p == parent || strings.HasPrefix(p, parent+"/") }

func underAny(p string, parents []string) bool {
	return slices.ContainsFunc(parents, func(parent string) bool { return under(p, parent) })
}

// violations lists what in imports (package to imported paths; ours without
// the module's path and a leading "./") breaks the plan, sorted.
func violations(imports map[string][]string) []string {
	var found []string
	report := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	for _, pkg := range slices.Sorted(maps.Keys(imports)) {
		if slices.Contains([]string{"util", "utils", "common", "types", "helpers", "errdefs"}, path.Base(pkg)) {
			report("%s: a package is named for what it is", pkg)
		}
		home, known := rooms[pkg]
		if !known {
			report("%s: has no room; add it to the table here and in docs/architecture.md", pkg)
			continue
		}
		for _, imported := range imports[pkg] {
			local, ours := strings.CutPrefix(imported, "./")
			if !ours {
				continue
			}
			to, known := rooms[local]
			switch {
			case under(local, "cmd"):
				report("%s imports %s: commands are nobody's library", pkg, local)
			case known && to.floor == testsOnly && home.floor != testsOnly:
				report("%s imports %s: that is for tests", pkg, local)
			case known && to.floor >= home.floor && !under(local, pkg) && !slices.Contains(home.also, local):
				report("%s (floor %d) imports %s (floor %d)", pkg, home.floor, local, to.floor)
			}
			for _, r := range never {
				if underAny(pkg, r.packages) && !underAny(pkg, r.except) && underAny(local, r.never) && !under(local, pkg) {
					report("%s imports %s: %s", pkg, local, r.why)
				}
			}
		}
		if underAny(pkg, pure) {
			for _, chain := range ioChains(imports, pkg, nil) {
				report("%s reaches %s: it opens nothing", strings.Join(chain[:len(chain)-1], " -> "), chain[len(chain)-1])
			}
		}
	}
	return found
}

// ioChains follows our own imports from pkg to what does I/O.
func ioChains(imports map[string][]string, pkg string, before []string) [][]string {
	chain := append(slices.Clone(before), pkg)
	var chains [][]string
	for _, imported := range imports[pkg] {
		local, ours := strings.CutPrefix(imported, "./")
		switch {
		case ours && !underAny(local, pure): // those report for themselves
			chains = append(chains, ioChains(imports, local, chain)...)
		case !ours && doesIO(imported):
			chains = append(chains, append(slices.Clone(chain), imported))
		}
	}
	return chains
}

// readImports reads the imports of all packages below root, tests aside, in
// every file whatever its build constraints.
func readImports(root string) (map[string][]string, error) {
	imports := map[string][]string{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if file != root && (name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(dir)
		all := imports[pkg]
		for _, spec := range f.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if local, ours := strings.CutPrefix(p, module+"/"); ours {
				p = "./" + local
			}
			all = append(all, p)
		}
		slices.Sort(all)
		imports[pkg] = slices.Compact(all)
		return nil
	})
	return imports, err
}

func TestFloors(t *testing.T) {
	imports, err := readImports("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{"llb", "solver", "cmd/build"} {
		if len(imports[must]) == 0 {
			t.Errorf("found no imports of %s: the test reads the wrong tree", must)
		}
	}
	for _, v := range violations(imports) {
		t.Error(v)
	}
}

func TestViolations(t *testing.T) {
	for _, tt := range []struct {
		name    string
		imports map[string][]string
		want    []string // parts of the violations, in order
	}{
		{"downwards", map[string][]string{"executor": {"./cache", "./executor/sandbox", "os"}}, nil},
		{"own sub-package", map[string][]string{"cache": {"./cache/image"}}, nil},
		{"upwards", map[string][]string{"solver": {"./internal/builder"}}, []string{"solver (floor 2) imports internal/builder (floor 4)"}},
		{"sideways", map[string][]string{"solver": {"./exporter"}}, []string{"solver (floor 2) imports exporter (floor 2)"}},
		{"neighbour with a reason", map[string][]string{"cache/overlay": {"./cache/tree"}}, nil},
		{"commands", map[string][]string{"internal/builder": {"./cmd/build"}}, []string{"nobody's library"}},
		{"solver and cache", map[string][]string{"solver": {"./cache/tree"}}, []string{"the solver is generic"}},
		{"storage and graph", map[string][]string{"cache/layer": {"./llb"}}, []string{"floor 1", "storage knows no graph"}},
		{"remote storage may know the graph", map[string][]string{"cache/remote": {"./llb"}}, nil},
		{"sandbox and progress", map[string][]string{"executor/sandbox": {"./internal/progress", "./internal/oci"}}, []string{"only internal/oci"}},
		{"parser opens files", map[string][]string{"parser/ignore": {"os"}}, []string{"parser/ignore reaches os"}},
		{"values of net", map[string][]string{"llb": {"net/netip", "io"}}, nil},
		{"graph opens files by way of another", map[string][]string{"llb": {"./internal/oci"}, "internal/oci": {"net/http"}}, []string{"llb -> internal/oci reaches net/http"}},
		{"no room", map[string][]string{"shed": {}}, []string{"shed: has no room"}},
		{"a drawer", map[string][]string{"internal/util": {}}, []string{"named for what it is", "no room"}},
		{"tests' things", map[string][]string{"cmd/build": {"./internal/testbase"}}, []string{"that is for tests"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := violations(tt.imports)
			ok := len(got) == len(tt.want)
			for i := 0; ok && i < len(got); i++ {
				ok = strings.Contains(got[i], tt.want[i])
			}
			if !ok {
				t.Errorf("violations(%v) = %q, want %q", tt.imports, got, tt.want)
			}
		})
	}
}
