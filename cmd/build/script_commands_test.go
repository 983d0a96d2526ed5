package main

import (
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is how long a script waits for what must come.
const patience = 60 * time.Second

// The commands that scripts have besides testscript's; see TestScript.

func (b *bases) command(ts *testscript.TestScript, neg bool, kinds []string) {
	if neg || len(kinds) == 0 {
		ts.Fatalf("usage: base KIND...")
	}
	tb, ok := ts.Value(testKey{}).(testing.TB)
	if !ok {
		ts.Fatalf("no test")
	}
	for _, kind := range kinds {
		ts.Check(b.push(tb, kind))
	}
}

// testKey is where setup leaves the test that the script runs in.
type testKey struct{}

func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await REGEXP [NAME] CMD...")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	args = args[1:]
	name := ""
	if re.NumSubexp() > 0 {
		name, args = args[0], args[1:]
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := ts.Exec(args[0], args[1:]...)
		out := ts.ReadFile("stdout")
		if m := re.FindStringSubmatch(out); m != nil {
			if name != "" {
				ts.Setenv(name, m[1])
			}
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("await %q: %v\n%s%s", re, err, out, ts.ReadFile("stderr"))
		}
	}
}

func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: get URL")
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		res, err := http.Get(args[0])
		if err == nil {
			body, err := io.ReadAll(res.Body)
			res.Body.Close()
			ts.Check(err)
			_, err = ts.Stdout().Write(body)
			ts.Check(err)
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("get %s: %v", args[0], err)
		}
	}
}

func freeport(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport NAME")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
}

func size(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: size N FILE")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	data := make([]byte, n)
	_, err = rand.NewChaCha8([32]byte{}).Read(data)
	ts.Check(err)
	name := ts.MkAbs(args[1])
	ts.Check(os.MkdirAll(filepath.Dir(name), 0o755))
	ts.Check(os.WriteFile(name, data, 0o644))
}

// otherUser runs the program as root of a user namespace, whose users are other
// ones of this machine: of the files of all else here it can only read what
// everybody can.
func otherUser(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: otheruser DIR ARG...")
	}
	const first, count = 200000, 65536
	// Not in the test's own directory, which is root's alone.
	home, err := os.MkdirTemp("/var/tmp", "build-other-user-")
	ts.Check(err)
	ts.Defer(func() { os.RemoveAll(home) })
	ts.Check(os.CopyFS(filepath.Join(home, "context"), os.DirFS(ts.MkAbs(args[0]))))
	bin, _, _ := strings.Cut(ts.Getenv("PATH"), ":")
	program, config := filepath.Join(home, "build"), filepath.Join(home, "config.toml")
	for from, to := range map[string]string{filepath.Join(bin, "build"): program, ts.Getenv("BUILD_CONFIG"): config} {
		data, err := os.ReadFile(from)
		ts.Check(err)
		ts.Check(os.WriteFile(to, data, 0o755))
	}
	ts.Check(filepath.WalkDir(home, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, first, first)
	}))
	cmd := exec.Command(program, args[1:]...)
	cmd.Dir = filepath.Join(home, "context")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "BUILD_ROOT=" + filepath.Join(home, "root"), "BUILD_CONFIG=" + config, "TZ=Asia/Tokyo"}
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	ids := []syscall.SysProcIDMap{{HostID: first, Size: count}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
	}
	ts.Check(cmd.Run())
}
