package torture

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/861fb494/build/internal/interpose"
	"github.com/861fb494/build/internal/testbase"
	"github.com/861fb494/build/internal/testbase/house"
)

var (
	kills   = flag.Int("kills", 20, "how many builds are killed")
	faults  = flag.Int("faults", 15, "how many system calls fail; 0: each that a build makes")
	damaged = flag.Int("damages", 15, "how many files are damaged; 0: each class in each way")
	// The same each time, so that a change is what makes a test fail.
	seed = flag.Uint64("seed", 1, "of all that is random; 0: another each time")
)

func TestMain(m *testing.M) {
	interpose.Reexec()
	code := house.Run(m)
	if theLab.lab != nil {
		theLab.close()
	}
	os.Exit(code)
}

// random is a source for one test, whose seed is told where it fails.
func random(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = rand.Uint64N(1 << 32)
	}
	t.Logf("replay with -seed %d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// lab is what all tests share: the binary, a registry with base images, a
// server of files, one of repositories, and a build context.
type lab struct {
	dir      string
	bin      string
	registry string
	config   string
	context  string
	args     []string // build arguments: where the servers are
	want     string   // what content returns of a build in a fresh directory
	wantMore string   // the same with a step that reads all that the others made
	ends     []func()
}

func (l *lab) close() {
	for _, end := range slices.Backward(l.ends) {
		end()
	}
}

var theLab struct {
	sync.Once
	*lab
	err error
}

// open is the lab, made by the first test that wants it.
func open(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	theLab.Do(func() {
		theLab.lab, theLab.err = newLab()
		if theLab.err == nil {
			r := theLab.root(t)
			theLab.want = r.content(t)
			theLab.wantMore = r.content(t, theLab.more(0)...)
		}
	})
	if theLab.err != nil {
		t.Fatal(theLab.err)
	}
	return theLab.lab
}

// newLab makes the lab, for TestMain to close.
func newLab() (l *lab, err error) {
	dir, err := os.MkdirTemp("", "torture-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	l = &lab{dir: dir, bin: filepath.Join(dir, "build"), config: filepath.Join(dir, "config.toml"), context: filepath.Join(dir, "context")}
	l.ends = append(l.ends, func() { os.RemoveAll(dir) })
	cmd := exec.Command("go", "build", "-o", l.bin, "../../cmd/build")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	stored := filepath.Join(dir, "registry")
	if err := os.Mkdir(stored, 0o755); err != nil {
		return nil, err
	}
	registry, err := testbase.StartRegistry(stored)
	if err != nil {
		return nil, err
	}
	l.ends = append(l.ends, registry.Close)
	l.registry = registry.Addr
	img, err := testbase.Make("busybox")
	if err == nil {
		err = testbase.Push(context.Background(), img, l.registry+"/library/busybox:latest")
	}
	if err != nil {
		return nil, err
	}
	mirror := fmt.Sprintf("[registry.\"docker.io\"]\n  mirrors = [%q]\n", l.registry)
	if err := os.WriteFile(l.config, []byte(mirror), 0o600); err != nil {
		return nil, err
	}
	if err := l.serve(dir); err != nil {
		return nil, err
	}
	return l, l.writeContext()
}

// serve starts the servers that ADD takes from.
func (l *lab) serve(dir string) error {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "file", time.Unix(1e9, 0), strings.NewReader(strings.Repeat("downloaded\n", 1000)))
	}))
	l.ends = append(l.ends, web.Close)
	repo := filepath.Join(dir, "repositories", "repo.git")
	for _, args := range [][]string{
		{"git", "init", "-q", "-b", "main", repo},
		{"sh", "-c", "echo cloned > " + repo + "/cloned"},
		{"git", "-C", repo, "add", "cloned"},
		{"git", "-C", repo, "-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", "m"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", args[0], err, out)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err = errors.Join(err, listener.Close()); err != nil {
		return err
	}
	daemon := exec.Command("git", "daemon", "--listen=127.0.0.1", "--port="+port, "--reuseaddr", "--export-all", "--base-path="+filepath.Dir(repo))
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := daemon.Start(); err != nil {
		return err
	}
	l.ends = append(l.ends, func() {
		_ = syscall.Kill(-daemon.Process.Pid, syscall.SIGKILL) // with its children
		_ = daemon.Wait()
	})
	for range 100 {
		if c, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			c.Close()
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	l.args = []string{"--build-arg", "WEB=" + web.URL, "--build-arg", "GIT=git://127.0.0.1:" + port}
	return nil
}

// dockerfile has a step of each kind. What its image holds depends on nothing
// but the context, so that all builds agree; times aside.
const dockerfile = `FROM busybox AS tools
ARG WEB
ADD $WEB/file /tools/file
ARG GIT
ADD $GIT/repo.git#main /tools/repo
RUN --mount=type=cache,target=/cache,id=torture if [ -e /cache/ready ]; then cat /cache/ready; else echo ready > /cache/ready; fi > /dev/null; md5sum /tools/file > /tools/sum
FROM busybox
COPY src /src
RUN cat /src/* | md5sum > /sum; ln /sum /linked; ln -s sum /soft; rm -r /src/gone; mkfifo /fifo; chown 7:8 /fifo
COPY --from=tools /tools /tools
RUN --network=none --mount=type=bind,target=/context md5sum /context/src/a0 > /bound; seq 1 20000 > /numbers
COPY --link hello /hello
`

// salt is a stage that is another with each SALT, and reader a step which reads
// what the others have made: it always runs, and always yields the same.
const (
	salt = `FROM busybox AS salt
ARG SALT
RUN echo $SALT > /salt
`
	reader = `RUN --mount=from=salt,target=/salt find /bin /src /tools /numbers /sum /bound /hello -type f | sort | xargs md5sum > /all
`
)

// more is the arguments of a build with that step.
func (l *lab) more(salt uint64) []string {
	return []string{"--build-arg", fmt.Sprint("SALT=", salt), "--file", filepath.Join(l.context, "Dockerfile.more")}
}

func (l *lab) writeContext() error {
	files := map[string]string{"Dockerfile": dockerfile, "Dockerfile.more": salt + dockerfile + reader, "hello": "hello\n", "src/gone/x": "x"}
	data := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data) // it never fails
	files["src/big"] = string(data)
	for i := range 30 {
		files[fmt.Sprintf("src/a%d", i)] = strings.Repeat(fmt.Sprintln(i), 100*i)
	}
	for name, text := range files {
		p := filepath.Join(l.context, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// root is a state directory of the lab's builder.
type root struct {
	*lab
	dir    string
	home   string // and for temporary files
	out    string // for what commands put out
	before house.Things
}

// root makes a state directory, which is checked and removed with the test.
func (l *lab) root(t *testing.T) *root {
	t.Helper()
	// Not the test's directory: the name of that may be of no use in an option.
	dir, err := os.MkdirTemp(l.dir, "root-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &root{lab: l, dir: filepath.Join(dir, "root"), home: filepath.Join(dir, "home"), out: filepath.Join(dir, "out")}
	for _, d := range []string{r.home, r.out} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if r.before, err = house.Look(r.dir); err != nil {
		t.Fatal(err)
	}
	return r
}

// command is the builder in r.
func (r *root) command(args ...string) *exec.Cmd {
	cmd := exec.Command(r.bin, args...)
	cmd.Env = append(os.Environ(), "HOME="+r.home, "TMPDIR="+r.home, "BUILD_ROOT="+r.dir, "BUILD_CONFIG="+r.config, "BUILDKIT_PROGRESS=plain")
	return cmd
}

// building is the arguments of a build of the lab's context.
func (r *root) building(more ...string) []string {
	return append(append(slices.Clone(more), r.args...), r.context)
}

// run runs the builder and returns all that it printed.
func (r *root) run(args ...string) (string, error) {
	out, err := r.command(args...).CombinedOutput()
	return string(out), err
}

// must is run that has to succeed.
func (r *root) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.run(args...)
	if err != nil {
		t.Fatalf("build %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// content builds the image, names it x, and returns its ID and a digest of its
// files.
func (r *root) content(t *testing.T, more ...string) string {
	t.Helper()
	sum, out, err := r.tryContent(more...)
	if err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return sum
}

func (r *root) tryContent(more ...string) (sum, out string, err error) {
	return r.contentBy((*exec.Cmd).Run, more...)
}

// contentBy is content of a builder that run runs.
func (r *root) contentBy(run func(*exec.Cmd) error, more ...string) (sum, out string, err error) {
	file, iid := filepath.Join(r.out, "content.tar"), filepath.Join(r.out, "iid")
	defer os.Remove(file)
	defer os.Remove(iid)
	more = append([]string{"--reproducible", "-t", "x", "-o", "type=image", "-o", "type=tar,dest=" + file, "--iidfile", iid}, more...)
	cmd := r.command(r.building(more...)...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err = run(cmd)
	if out = said.String(); err != nil {
		return "", out, err
	}
	id, err := os.ReadFile(iid)
	if err != nil {
		return "", out, err
	}
	f, err := os.Open(file)
	if err != nil {
		return "", out, err
	}
	defer f.Close()
	sum, err = digestTar(f)
	return string(id) + " with " + sum, out, err
}

// digestTar is a digest of what a tar holds.
func digestTar(r io.Reader) (string, error) {
	var lines []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return "", err
		}
		body := sha256.New()
		if _, err := io.Copy(body, tr); err != nil {
			return "", err
		}
		lines = append(lines, fmt.Sprintf("%q %c %o %d:%d %q %d %d %x %v", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, h.ModTime.Unix(), h.Size, body.Sum(nil), h.PAXRecords))
	}
	slices.Sort(lines)
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(lines, "\n")))), nil
}

// right fails the test unless the next build in r yields what a clean one does.
func (r *root) right(t *testing.T, after string, flags ...string) {
	t.Helper()
	sum, out, err := r.tryContent(flags...)
	if err != nil {
		t.Fatalf("after %s, build %s: %v\n%s", after, strings.Join(flags, " "), err, out)
	}
	want := r.want
	if slices.Contains(flags, "--file") {
		want = r.wantMore
	}
	if sum != want {
		t.Fatalf("after %s, the image of build %s holds %s, want %s\n%s", after, strings.Join(flags, " "), sum, want, out)
	}
}

// sound fails the test if fsck finds anything wrong.
func (r *root) sound(t *testing.T, after string) {
	t.Helper()
	if out, err := r.run("fsck"); err != nil {
		t.Fatalf("after %s, fsck: %v\n%s", after, err, out)
	}
}

// clean fails the test if anything is left behind but the state directory's
// own. What is being removed at this moment is given time.
func (r *root) clean(t *testing.T, after string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		now, err := house.Look(r.dir, r.home, filepath.Join(r.dir, "tmp"), filepath.Join(r.dir, "images", "ingest"),
			filepath.Join(r.dir, "leases"), filepath.Join(r.dir, "locks"), filepath.Join(r.dir, "snapshots", "work"), filepath.Join(r.dir, "snapshots", "trash"), filepath.Join(r.dir, "snapshots", "places"), filepath.Join(r.dir, "oci"))
		if err != nil {
			t.Fatal(err)
		}
		maps.DeleteFunc(now, func(thing string, _ bool) bool {
			return r.before[thing] || strings.Contains(thing, "git-daemon") || strings.Contains(thing, "/work/container-")
		})
		r.strays(t, now)
		for _, pattern := range []string{"*/out-*", "*/tmp-*", ".*", "*/.tmp-*", "*/*/.tmp-*", "mounts/*/*.new", "mounts/*/*.gone"} {
			found, _ := filepath.Glob(filepath.Join(r.dir, pattern))
			for _, f := range found {
				now["temporary file "+f] = true
			}
		}
		if len(now) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s, left behind:\n\t%s", after, strings.Join(slices.Sorted(maps.Keys(now)), "\n\t"))
		}
	}
}

// strays adds the files of layers that are committed nowhere.
func (r *root) strays(t *testing.T, now house.Things) {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(r.dir, "snapshots", "layers"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if _, err := os.Lstat(filepath.Join(r.dir, "layers", e.Name(), "layer.json")); err != nil && !strings.HasPrefix(e.Name(), "container-") {
			now["files of no layer "+e.Name()] = true
		}
	}
}
