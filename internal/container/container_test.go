package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/tree"
	"github.com/861fb494/build/executor/network"
	"github.com/861fb494/build/executor/sandbox"
	"github.com/861fb494/build/internal/oci"
)

// The tests run in network, PID and mount namespaces of their own: no shim
// outlives them. This program is also the sandbox's child and the shim.
func TestMain(m *testing.M) {
	sandbox.Reexec()
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if len(os.Args) == 4 && os.Args[1] == "shim" {
		signals := make(chan os.Signal, 4)
		signal.Notify(signals, syscall.SIGTERM)
		cs := at(os.Args[2])
		err := cs.Shim(context.Background(), os.Args[3], signals)
		if err := errors.Join(err, cs.Networks.(*network.Networks).Close()); err != nil {
			return CodeFailed
		}
		return 0
	}
	if os.Geteuid() != 0 {
		return m.Run()
	}
	if os.Getenv("CONTAINER_TEST") != "" {
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "set up the tests' namespaces:", err)
			return 1
		}
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "CONTAINER_TEST=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		return 1
	}
	return 0
}

func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	return loopbackUp()
}

// roots is a Snapshots without layers: each container has a directory of its
// own with busybox in it.
type roots struct{ dir string }

func (r roots) Prepare(_ context.Context, id string, chain []string) (cache.Snapshot, error) {
	root := filepath.Join(r.dir, id)
	for _, d := range []string{"bin", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return cache.Snapshot{}, err
		}
	}
	os.Chmod(filepath.Join(root, "tmp"), 0o1777)
	files := map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/srv:/bin/sh\n",
		"etc/group":  "root:x:0:\nweb:x:1001:\nlogs:x:1002:web\n",
		"etc/layers": strings.Join(chain, " "),
	}
	for name, s := range files {
		if err := os.WriteFile(filepath.Join(root, name), []byte(s), 0o644); err != nil {
			return cache.Snapshot{}, err
		}
	}
	b, err := os.ReadFile("/usr/bin/busybox")
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755)
	}
	for _, name := range []string{"sh", "cat", "id", "sleep", "env", "httpd", "stty", "hostname", "touch", "wget"} {
		if err == nil {
			err = os.Symlink("busybox", filepath.Join(root, "bin", name))
		}
	}
	if err != nil {
		return cache.Snapshot{}, err
	}
	t, err := tree.New(root, nil)
	return cache.Snapshot{Root: oci.Mount{Type: "bind", Source: root, Options: []string{"rbind"}}, Tree: t}, err
}

func (r roots) Remove(_ context.Context, id string) error {
	return os.RemoveAll(filepath.Join(r.dir, id))
}

// at is the containers of a test's directory, in whichever process.
func at(dir string) *Containers {
	return &Containers{
		Dir:       filepath.Join(dir, "containers"),
		Snapshots: roots{filepath.Join(dir, "roots")},
		Sandbox:   sandbox.NewNative(sandbox.NativeOptions{}),
		Networks:  network.New(filepath.Join(dir, "network"), network.Options{}),
	}
}

type fixture struct {
	*testing.T
	*Containers
	dir string
}

func setup(t *testing.T) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root, to make namespaces")
	}
	if _, err := os.Stat("/usr/bin/busybox"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs /usr/bin/busybox, of Debian's package busybox-static")
	}
	dir := t.TempDir()
	f := &fixture{T: t, Containers: at(dir), dir: dir}
	t.Cleanup(func() {
		infos, err := f.List()
		if err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, i := range infos {
			if err := f.Remove(ctx, i.ID, true); err != nil {
				t.Error(err)
			}
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "roots")); len(left) > 0 {
			t.Errorf("writable layers left: %v", left)
		}
		if b, err := os.ReadFile("/proc/self/mounts"); err != nil || bytes.Contains(b, []byte(dir)) {
			t.Errorf("mounts left below %s", dir)
		}
	})
	return f
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// image runs a shell script.
func image(script string) Image {
	var i Image
	i.Name = "busybox"
	i.Chain = []string{"one", "two"}
	i.Config.Cmd = []string{"/bin/sh", "-c", script}
	return i
}

func (f *fixture) create(img Image, o Options) *Container {
	f.Helper()
	if o.Network.Mode == "" {
		o.Network.Mode = network.None
	}
	c, err := f.Create(context.Background(), img, o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { c.Close() })
	return c
}

// run runs a container in this process, and returns its output and exit code.
func (f *fixture) run(img Image, o Options) (out string, code int) {
	f.Helper()
	var b buffer // of two streams
	code, err := f.Supervise(context.Background(), f.create(img, o), Streams{Out: &b, Err: &b})
	if err != nil {
		fmt.Fprint(&b, err)
	}
	return b.String(), code
}

// detach starts a container with a shim.
func (f *fixture) detach(img Image, o Options) *Container {
	f.Helper()
	c := f.create(img, o)
	if _, err := f.Detach(context.Background(), c, []string{"shim", f.dir, c.ID}); err != nil {
		f.Fatal(err)
	}
	return c
}

func (f *fixture) logs(name string, o LogOptions) string {
	f.Helper()
	var out bytes.Buffer
	if err := f.Logs(context.Background(), name, o, &out, &out); err != nil {
		f.Fatal(err)
	}
	return out.String()
}

func TestRun(t *testing.T) {
	f := setup(t)
	web := image("id; echo $HOME $PWD")
	web.Config.User, web.Config.WorkingDir = "web", "/srv/app"
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "f"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		img  Image
		o    Options
		out  string // contained in the output
		code int
	}{
		{"output", image("echo hi"), Options{}, "hi\n", 0},
		{"standard error", image("echo ho >&2"), Options{}, "ho\n", 0},
		{"status", image("exit 42"), Options{}, "", 42},
		{"signal", image("kill -9 $$ & wait"), Options{Process: ProcessOptions{Init: true}}, "", 137},
		{"layers", image("cat /etc/layers"), Options{}, "one two", 0},
		{"user of the image", web, Options{}, "uid=1000(web) gid=1001(web) groups=1001(web),1002(logs)\n/srv /srv/app\n", 0},
		{"user of the options", web, Options{Process: ProcessOptions{User: "0:7", Dir: "/tmp"}}, "uid=0(root) gid=7 groups=7\n/root /tmp\n", 0},
		{"numeric user without entry", web, Options{Process: ProcessOptions{User: "4242"}}, "uid=4242 gid=0(root) groups=0(root)\n/ /srv/app\n", 0},
		{"host name", image("echo $HOSTNAME; hostname; cat /etc/hostname"), Options{Network: NetworkOptions{Hostname: "box"}}, "box\nbox\nbox\n", 0},
		{"hosts", image("cat /etc/hosts"), Options{Network: NetworkOptions{Hosts: []network.HostEntry{{Name: "db", Addr: "192.0.2.1"}}}}, "192.0.2.1\tdb\n", 0},
		{"bind", image("cat /data/f; touch /data/g || echo read-only"), Options{Mounts: []oci.Mount{{Type: "bind", Source: host, Target: "/data", Options: []string{"rbind", "ro"}}}}, "from the host\n", 0},
		{"bind is read-only", image("touch /data/g 2>&1"), Options{Mounts: []oci.Mount{{Type: "bind", Source: host, Target: "/data", Options: []string{"rbind", "ro"}}}}, "Read-only file system", 1},
		{"root is read-only", image("touch /x 2>&1"), Options{ReadOnly: true}, "Read-only file system", 1},
		{"not found", image(""), Options{Process: ProcessOptions{Entrypoint: []string{"/no/such"}}}, "no such", 127},
		{"not executable", image(""), Options{Process: ProcessOptions{Entrypoint: []string{"/etc/passwd"}}}, "ermission denied", 126},
	}
	for _, tt := range tests {
		out, code := f.run(tt.img, tt.o)
		if !strings.Contains(out, tt.out) || code != tt.code {
			t.Errorf("%s: %q, exit code %d, want %q, %d", tt.name, out, code, tt.out, tt.code)
		}
	}
	if _, err := os.Stat(filepath.Join(host, "g")); err == nil {
		t.Error("a read-only bind was written to")
	}
}

func TestStdin(t *testing.T) {
	f := setup(t)
	c := f.create(image("cat"), Options{Process: ProcessOptions{Stdin: true}})
	var out bytes.Buffer
	code, err := f.Supervise(context.Background(), c, Streams{In: strings.NewReader("through"), Out: &out})
	if err != nil || code != 0 || out.String() != "through" {
		t.Errorf("cat = %q, %d, %v, want its input", out.String(), code, err)
	}
}

func TestOutputLost(t *testing.T) {
	f := setup(t)
	c := f.create(image("while :; do echo y; done"), Options{})
	closed := writerFunc(func([]byte) (int, error) { return 0, syscall.EPIPE })
	code, err := f.Supervise(context.Background(), c, Streams{Out: closed})
	if err != nil || code != LostCode {
		t.Errorf("with nobody to read on: %d, %v, want %d", code, err, LostCode)
	}
}

func TestSignals(t *testing.T) {
	f := setup(t)
	trap := `trap 'echo got int; exit 3' INT; trap 'echo got quit; exit 4' QUIT; echo ready; while :; do sleep 0.1; done`
	deaf := `trap '' TERM; echo ready; while :; do sleep 0.1; done`
	short := 300 * time.Millisecond
	tests := []struct {
		name   string
		script string
		o      Options
		send   []os.Signal
		out    string
		code   int
	}{
		{"the stop signal for Ctrl-C", trap, Options{StopSignal: "SIGQUIT"}, []os.Signal{syscall.SIGINT}, "got quit", 4},
		{"others as they are", trap, Options{}, []os.Signal{syscall.SIGQUIT}, "got quit", 4},
		{"killed after the timeout", deaf, Options{StopTimeout: &short}, []os.Signal{syscall.SIGTERM}, "", 137},
		{"killed by the second", deaf, Options{}, []os.Signal{syscall.SIGINT, syscall.SIGINT}, "", 137},
	}
	for _, tt := range tests {
		c := f.create(image(tt.script), tt.o)
		signals := make(chan os.Signal, len(tt.send))
		var out bytes.Buffer
		ready := writerFunc(func(p []byte) (int, error) {
			if bytes.Contains(p, []byte("ready")) {
				for _, s := range tt.send {
					signals <- s
				}
			}
			return out.Write(p)
		})
		began := time.Now()
		code, err := f.Supervise(context.Background(), c, Streams{Out: ready, Signals: signals})
		if err != nil || code != tt.code || !strings.Contains(out.String(), tt.out) {
			t.Errorf("%s: %q, %d, %v, want %q, %d", tt.name, out.String(), code, err, tt.out, tt.code)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("%s: took %v", tt.name, d)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestDetached(t *testing.T) {
	f := setup(t)
	ctx := context.Background()
	c := f.detach(image(`trap 'echo bye; exit 7' TERM; echo hello; printf '\377\n'; while :; do sleep 0.05; done`), Options{Name: "box"})
	info, err := f.Find("box")
	if err != nil || info.Status != Running || info.ID != c.ID || info.Pid == 0 {
		t.Fatalf("Find = %+v, %v, want it running", info, err)
	}
	if _, err := f.Create(ctx, image(""), Options{Name: "box"}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second container of the name: %v", err)
	}
	if err := f.Remove(ctx, "box", false); err == nil || !strings.Contains(err.Error(), "is running") {
		t.Errorf("Remove while running = %v, want a refusal", err)
	}
	var out, errs buffer
	code, err := f.Exec(ctx, "box", ExecOptions{Args: []string{"/bin/sh", "-c", "cat; id -u; echo err >&2; exit 9"}, User: "web"},
		Streams{In: strings.NewReader("in "), Out: &out, Err: &errs})
	if err != nil || code != 9 || out.String() != "in 1000\n" || errs.String() != "err\n" {
		t.Errorf("Exec = %q, %q, %d, %v", out.String(), errs.String(), code, err)
	}
	code, err = f.Exec(ctx, "box", ExecOptions{Args: []string{"/no/such"}}, Streams{})
	if code != 127 || err == nil {
		t.Errorf("Exec of nothing = %d, %v, want 127", code, err)
	}
	for began := time.Now(); !strings.Contains(f.logs("box", LogOptions{}), "hello"); time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("the container does not begin") // until it has, nothing is trapped
		}
	}
	if err := f.Stop(ctx, c.ID[:10], nil); err != nil {
		t.Fatal(err)
	}
	if code, err := f.Wait(ctx, "box"); code != 7 || err != nil {
		t.Errorf("Wait = %d, %v, want 7", code, err)
	}
	if got := f.logs("box", LogOptions{}); got != "hello\n\xff\nbye\n" {
		t.Errorf("Logs = %q", got)
	}
	if err := f.Stop(ctx, "box", nil); err != nil {
		t.Errorf("Stop of a stopped container = %v", err)
	}
	if err := f.Kill(ctx, "box", syscall.SIGTERM); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("Kill of a stopped container = %v", err)
	}
	if err := f.Remove(ctx, "box", false); err != nil {
		t.Error(err)
	}
	if _, err := f.Find("box"); err == nil {
		t.Error("Find after Remove finds it")
	}
}

func TestDetachFails(t *testing.T) {
	f := setup(t)
	c := f.create(image(""), Options{Process: ProcessOptions{Entrypoint: []string{"/no/such"}}})
	code, err := f.Detach(context.Background(), c, []string{"shim", f.dir, c.ID})
	if code != 127 || err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("Detach = %d, %v, want 127", code, err)
	}
	info, err := f.Find(c.ID)
	if err != nil || info.Status != Exited || info.ExitCode != 127 || info.Error == "" {
		t.Errorf("Find = %+v, %v, want it exited with 127", info.State, err)
	}
}

func TestWaiters(t *testing.T) {
	f := setup(t)
	c := f.detach(image("sleep 0.3; echo end; exit 5"), Options{Remove: true})
	codes := make(chan int, 3)
	for range cap(codes) {
		go func() {
			code, err := f.Wait(context.Background(), c.ID)
			if err != nil {
				code = -1
			}
			codes <- code
		}()
	}
	if got := f.logs(c.ID, LogOptions{Follow: true}); got != "end\n" {
		t.Errorf("Logs --follow = %q, want %q", got, "end\n")
	}
	for range cap(codes) {
		if code := <-codes; code != 5 {
			t.Errorf("Wait = %d, want 5", code)
		}
	}
	end := time.Now().Add(5 * time.Second)
	for _, err := f.Find(c.ID); err == nil && time.Now().Before(end); _, err = f.Find(c.ID) {
		time.Sleep(10 * time.Millisecond)
	}
	if i, err := f.Find(c.ID); err == nil {
		t.Errorf("after --rm it is still there: %+v", i.State)
	}
}

func TestShimKilled(t *testing.T) {
	f := setup(t)
	ctx := context.Background()
	kept := f.detach(image("sleep 1000"), Options{Name: "kept"})
	f.detach(image("sleep 1000"), Options{Name: "gone", Remove: true})
	f.detach(image("sleep 1000"), Options{Name: "removed"})
	waited := make(chan int)
	go func() {
		code, _ := f.Wait(ctx, "kept")
		waited <- code
	}()
	time.Sleep(50 * time.Millisecond)
	var ids []string
	for _, name := range []string{"kept", "gone", "removed"} {
		info, err := f.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, info.ID)
		shim := parent(t, info.Pid)
		if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		syscall.Wait4(shim, nil, 0, nil)
		end := time.Now().Add(5 * time.Second)
		for runs(info.Pid) && time.Now().Before(end) {
			time.Sleep(10 * time.Millisecond)
		}
		if runs(info.Pid) {
			t.Errorf("%s: its process lives on", name)
		}
	}
	if code := <-waited; code != LostCode {
		t.Errorf("Wait = %d, want %d", code, LostCode)
	}
	info, err := f.Find(kept.ID)
	if err != nil || info.Status != Exited || !info.Lost {
		t.Errorf("Find = %+v, %v, want it lost", info.State, err)
	}
	// Nobody else would find what is left of one that is removed.
	if err := f.Remove(ctx, "removed", false); err != nil {
		t.Error(err)
	}
	// The next container clears up what the others left.
	f.run(image("true"), Options{Remove: true})
	if _, err := f.Find("gone"); err == nil {
		t.Error("a lost container of --rm was not removed")
	}
	for _, id := range ids {
		if left, _ := filepath.Glob("/sys/fs/cgroup/*/build/" + id); len(left) > 0 {
			t.Errorf("cgroups left: %v", left)
		}
	}
}

// runs reports whether a process is neither gone nor a zombie.
func runs(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.HasPrefix(b[bytes.LastIndexByte(b, ')'):], []byte(") Z"))
}

// parent is the PID of a process's parent.
func parent(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var ppid int
	if _, err := fmt.Sscanf(string(b[bytes.LastIndexByte(b, ')')+2:]), "%c %d", new(rune), &ppid); err != nil {
		t.Fatal(err)
	}
	return ppid
}

func TestPublishedPort(t *testing.T) {
	f := setup(t)
	ports, err := network.ParsePorts("127.0.0.1::80")
	if err != nil {
		t.Fatal(err)
	}
	img := image("echo served >/tmp/index.html; exec httpd -f -p 80 -h /tmp")
	img.Config.User = "web" // low ports are anyone's in the container's own network
	c := f.detach(img, Options{Network: NetworkOptions{Mode: network.Bridge, Ports: ports}})
	info, err := f.Find(c.ID)
	if err != nil || len(info.Ports) != 1 || info.Addr == "" {
		t.Fatalf("Find = %+v, %v, want a port and an address", info.State, err)
	}
	client := http.Client{Timeout: 2 * time.Second}
	var body []byte
	for end := time.Now().Add(3 * time.Second); len(body) == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		resp, gerr := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", info.Ports[0].Host))
		if err = gerr; err == nil {
			body, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
	}
	if string(body) != "served\n" {
		t.Errorf("GET = %q, %v", body, err)
	}
	if err := f.Remove(context.Background(), c.ID, true); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(5 * time.Second)
	for exists("/proc/sys/net/ipv4/conf/build0") && time.Now().Before(end) {
		time.Sleep(10 * time.Millisecond) // the shim is about to end
	}
	if exists("/proc/sys/net/ipv4/conf/build0") {
		t.Error("the bridge is left")
	}
}
