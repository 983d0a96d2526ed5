package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/861fb494/build/internal/testbase"
	"github.com/861fb494/build/internal/testbase/house"
)

// TestScript runs testdata/script/*.txt with the real binary, one after the
// other. A script has, besides testscript's own commands and variables:
//
//	$BUILD_ROOT, $HOME   its own
//	$REGISTRY            a registry on loopback, shared: push below $REGISTRY/$TEST
//	$TEST                the script's name
//	base KIND…           puts testbase's image KIND into the registry, which is
//	                     also docker.io's mirror: FROM KIND then works, and
//	                     FROM node:alpine. busybox and alpine are always there
//	await RE [NAME] CMD… repeats CMD until its standard output matches RE; sets
//	                     $NAME to the first group
//	actions NAME         starts a stand-in for the cache service of GitHub
//	                     Actions; $NAME is its address, "job's token" its token
//	bucket NAME          starts an S3 store; $NAME is its address. It has the
//	                     bucket "cache" for the access key "user" and "secret"
//	flip FILE OFFSET     changes a byte of a file
//	proxy NAME ADDR      starts a server that passes on to ADDR; $NAME is its address
//	requests ADDR        prints what such a server was asked since the last time,
//	                     and how many answers and bytes that were
//	freeport NAME        sets $NAME to a port that nobody listens on
//	get URL              does a GET until it is answered; the body is stdout
//	otheruser DIR ARG…   runs build ARG… as another user, in a copy of DIR, with a
//	                     home and a state directory of its own
//	size N FILE          writes N bytes that do not compress
//	hasgroup             fails if no step of a build has a control group
//	noleft               fails if a mount, control group, network device, firewall
//	                     table, process or temporary file is left behind
func TestScript(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dirs := []string{"../../testdata/script"}
	if dir := os.Getenv("BUILD_TEST_SCRIPTS"); dir != "" {
		dirs = []string{dir}
	}
	bin := t.TempDir()
	cmd := exec.Command("go", "build", "-o", filepath.Join(bin, "build"), ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	registry, err := testbase.StartRegistry(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(registry.Close)
	b := &bases{addr: registry.Addr, done: map[string]bool{}}
	for _, kind := range []string{"busybox", "alpine"} {
		if err := b.push(t, kind); err != nil {
			t.Fatal(err)
		}
	}

	for _, dir := range dirs {
		scripts, err := filepath.Glob(filepath.Join(dir, "*.txt"))
		if err != nil || len(scripts) == 0 {
			t.Fatalf("scripts in %s: %q, %v", dir, scripts, err)
		}
		for _, script := range scripts {
			name := strings.TrimSuffix(filepath.Base(script), ".txt")
			// One Run for each, since a Run's scripts go in parallel: noleft
			// could not tell whose a process is.
			t.Run(name, func(t *testing.T) {
				w := &watched{servers: map[string]*requestLog{}}
				testscript.Run(t, testscript.Params{
					Files: []string{script},
					Setup: func(e *testscript.Env) error { return setup(t, e, name, bin, registry.Addr) },
					Cmds: map[string]func(*testscript.TestScript, bool, []string){
						"actions":   w.actions,
						"await":     await,
						"bucket":    w.bucket,
						"flip":      flip,
						"proxy":     w.proxy,
						"requests":  w.requests,
						"base":      b.command,
						"freeport":  freeport,
						"get":       get,
						"hasgroup":  hasgroup,
						"noleft":    noleft,
						"otheruser": otherUser,
						"size":      size,
					},
				})
			})
		}
	}
}

// setup gives a script its surroundings.
func setup(t testing.TB, e *testscript.Env, name, bin, registry string) error {
	// Outside of $WORK, which is the build context.
	home, root := t.TempDir(), filepath.Join(t.TempDir(), "root")
	config := filepath.Join(home, "config.toml")
	mirror := fmt.Sprintf("[registry.\"docker.io\"]\n  mirrors = [%q]\n", registry)
	if err := os.WriteFile(config, []byte(mirror), 0o600); err != nil {
		return err
	}
	e.Setenv("HOME", home)
	e.Setenv("BUILD_ROOT", root)
	e.Setenv("BUILD_CONFIG", config)
	e.Setenv("REGISTRY", registry)
	e.Setenv("TEST", name)
	e.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	before, err := house.Look(root)
	if err != nil {
		return err
	}
	e.Values[beforeKey{}] = before
	e.Values[testKey{}] = t
	return nil
}

// bases are the base images in the registry.
type bases struct {
	addr string
	mu   sync.Mutex
	done map[string]bool
}

func (b *bases) push(t testing.TB, kind string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done[kind] {
		return nil
	}
	img, err := testbase.Make(kind)
	if err != nil {
		return err
	}
	tags := []string{"latest"}
	if kind == "node" || kind == "golang" {
		tags = append(tags, "alpine")
	}
	for _, tag := range tags {
		if err := testbase.Push(t.Context(), img, b.addr+"/library/"+kind+":"+tag); err != nil {
			return err
		}
	}
	b.done[kind] = true
	return nil
}
