package source

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/llb"
)

// gitCommand runs git for one remote.
type gitCommand struct {
	remote    string
	gitDir    string // --git-dir; empty: none
	workTree  string // --work-tree; empty: none
	index     string // GIT_INDEX_FILE; empty: the repository's
	sshSocket string
	offline   bool        // nothing but this machine's files is reached
	config    [][2]string // more configuration, in the environment: it may be secret
}

// authorize sends a header with requests to the server of u, and to it alone.
func (c *gitCommand) authorize(u *url.URL, token bool, v string) {
	if token {
		v = "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+v))
	}
	scope := (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/"}).String()
	c.config = append(c.config, [2]string{"http." + scope + ".extraHeader", "Authorization: " + v})
}

// run returns what git prints on standard output. Its error holds what git
// printed on standard error, without the remote's password.
func (c *gitCommand) run(ctx context.Context, args ...string) (string, error) {
	all := []string{
		"-c", "protocol.file.allow=user", // not for submodules: they could take in the host's files
		"-c", "core.hooksPath=/dev/null",
		"-c", "gc.auto=0",
		"-c", "advice.detachedHead=false",
		"-c", "init.defaultBranch=master",
	}
	if c.offline {
		all = append(all, "-c", "protocol.allow=never") // for all but files
	}
	if c.gitDir != "" {
		all = append(all, "--git-dir="+c.gitDir)
	}
	if c.workTree != "" {
		all = append(all, "--work-tree="+c.workTree)
	}
	all = append(all, args...)
	// The modes of files follow the umask, which belongs to the whole of a
	// process: a shell of its own sets it.
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", `umask 022 && exec git "$@"`, "git"}, all...)...)
	cmd.Env = c.environment()
	cmd.Dir = c.workTree
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	// git starts helpers for remotes; they are to end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 127 {
		return "", fmt.Errorf("git %s: the git command is not installed", redact(c.remote))
	}
	return "", fmt.Errorf("git %s: %s: %w", redact(c.remote), args[0], &gitError{c.said(errs.String()), err})
}

// gitError is a failed git with what it said.
type gitError struct {
	text string
	err  error
}

func (e *gitError) Error() string {
	if e.text == "" {
		return e.err.Error()
	}
	return e.text
}

func (e *gitError) Unwrap() error { return e.err }

// said is standard error in one line, without progress and the password.
func (c *gitCommand) said(text string) string {
	text = strings.ReplaceAll(text, c.remote, redact(c.remote))
	if u, err := url.Parse(c.remote); err == nil {
		if p, ok := u.User.Password(); ok && p != "" {
			text = strings.ReplaceAll(text, p, "xxxxx")
		}
	}
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

func (c *gitCommand) environment() []string {
	ssh := "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=accept-new"
	env := []string{
		"PATH=" + os.Getenv("PATH"),
		"LC_ALL=C",
		"HOME=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_SSH_COMMAND=" + ssh,
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy", "SSL_CERT_FILE", "GIT_SSL_CAINFO"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	if c.sshSocket != "" {
		env = append(env, "SSH_AUTH_SOCK="+c.sshSocket)
	}
	if c.index != "" {
		env = append(env, "GIT_INDEX_FILE="+c.index)
	}
	if len(c.config) > 0 {
		env = append(env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(c.config)))
		for i, kv := range c.config {
			env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
		}
	}
	return env
}

// ErrNoCommit: the remote does not have the commit that was asked for.
var ErrNoCommit = errors.New("the repository has no such commit")

// fetch makes sure that the repository has commit. ref, where the commit was
// found, may be empty.
func (c *gitCommand) fetch(ctx context.Context, commit, ref string) error {
	if _, err := os.Stat(filepath.Join(c.gitDir, "HEAD")); err != nil {
		args := []string{"init", "--quiet", "--bare"}
		if len(commit) == 64 {
			args = append(args, "--object-format=sha256")
		}
		if _, err := c.run(ctx, args...); err != nil {
			return err
		}
	}
	// What a process that was killed has left, also after it had all that it
	// wanted; ours is the lock.
	for _, left := range []string{"*.lock", "objects/??/tmp_*", "objects/pack/tmp_*"} {
		found, err := filepath.Glob(filepath.Join(c.gitDir, left))
		for _, path := range found {
			err = errors.Join(err, os.Remove(path))
		}
		if err != nil {
			return err
		}
	}
	if c.has(ctx, commit) {
		return nil
	}
	// Servers may refuse commits that no ref is at, and old ones shallow
	// fetches.
	tries := [][]string{{"--depth=1", "--", c.remote, commit}}
	if ref != "" && !IsCommit(ref) {
		tries = append(tries, []string{"--depth=1", "--", c.remote, ref})
	}
	all := []string{"--", c.remote, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"}
	if _, err := os.Stat(filepath.Join(c.gitDir, "shallow")); err == nil {
		tries = append(tries, append([]string{"--unshallow"}, all...))
	}
	tries = append(tries, all)
	var err error
	for _, args := range tries {
		if _, err = c.run(ctx, append([]string{"fetch", "--quiet", "--no-tags", "--no-recurse-submodules"}, args...)...); ctx.Err() != nil {
			return err
		}
		if err == nil && c.keep(ctx, commit) {
			return nil
		}
	}
	if err == nil {
		err = fmt.Errorf("git %s: %w %s", redact(c.remote), ErrNoCommit, commit)
	}
	return err
}

// fetchedRef is set once all of commit is here. That the commit is says nothing:
// a fetch that was stopped leaves some objects and not others.
func fetchedRef(commit string) string { return "refs/build/" + commit }

func (c *gitCommand) has(ctx context.Context, commit string) bool {
	_, err := c.run(ctx, "rev-parse", "--verify", "--quiet", fetchedRef(commit)+"^{commit}")
	return err == nil
}

// keep notes that commit was fetched; false if the fetch did not bring it.
func (c *gitCommand) keep(ctx context.Context, commit string) bool {
	_, err := c.run(ctx, "update-ref", fetchedRef(commit), commit)
	return err == nil
}

// checkout puts commit into a new directory in parent.
func (c *gitCommand) checkout(ctx context.Context, parent, commit string, o llb.GitOptions) (dir string, err error) {
	if dir, err = os.MkdirTemp(parent, "out-"); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
			dir = ""
		}
	}()
	if err := os.Chmod(dir, 0o755); err != nil {
		return dir, err
	}
	sub := strings.Trim(path.Clean("/"+o.Subdir), "/")
	work := *c
	work.workTree = dir
	keep := o.KeepDir && sub == ""
	if keep {
		err = c.clone(ctx, &work, commit, o.Ref)
	} else {
		work.index = dir + ".index"
		defer os.Remove(work.index)
		_, err = work.run(ctx, "read-tree", "--reset", "-u", commit)
	}
	if err != nil {
		return dir, err
	}
	if !o.SkipSubmodules {
		if err := work.submodules(ctx, keep); err != nil {
			return dir, err
		}
	}
	if sub != "" {
		return subdirectory(parent, dir, sub)
	}
	return dir, nil
}

// clone gives the work tree a .git of its own, with commit alone in it, and
// with the tag that ref may be.
func (c *gitCommand) clone(ctx context.Context, work *gitCommand, commit, ref string) error {
	work.gitDir = filepath.Join(work.workTree, ".git")
	init := []string{"init", "--quiet"}
	if len(commit) == 64 {
		init = append(init, "--object-format=sha256")
	}
	if _, err := work.run(ctx, init...); err != nil {
		return err
	}
	// By a URL, so that git copies instead of linking files of ours.
	from := "file://" + c.gitDir
	if _, err := work.run(ctx, "fetch", "--quiet", "--depth=1", "--no-tags", "--", from, fetchedRef(commit)); err != nil {
		return err
	}
	if tag := strings.TrimPrefix(strings.TrimPrefix(ref, "refs/"), "tags/"); ref != "" && !IsCommit(ref) {
		// The tag's object came with the commit only if it was asked for.
		spec := "+refs/tags/" + tag + ":refs/tags/" + tag
		var err error
		if !c.offline {
			_, err = c.run(ctx, "fetch", "--quiet", "--depth=1", "--no-tags", "--", c.remote, spec)
		}
		if err == nil {
			if at, err := c.run(ctx, "rev-parse", "refs/tags/"+tag+"^{commit}"); err == nil && strings.TrimSpace(at) == commit {
				if _, err := work.run(ctx, "fetch", "--quiet", "--depth=1", "--no-tags", "--", from, spec); err != nil {
					return err
				}
			}
		}
	}
	for _, args := range [][]string{
		{"checkout", "--quiet", "--detach", commit},
		{"remote", "add", "origin", redact(c.remote)},
		{"reflog", "expire", "--all", "--expire=now"},
	} {
		if _, err := work.run(ctx, args...); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(work.gitDir, "FETCH_HEAD")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// submodules checks them out, too. keepDir is whether their .git files lead
// anywhere once the work tree is alone.
func (c *gitCommand) submodules(ctx context.Context, keepDir bool) error {
	list := filepath.Join(c.workTree, ".gitmodules")
	if st, err := os.Lstat(list); errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
		return nil
	} else if err != nil {
		return err
	}
	if !keepDir {
		// The bare repository is shared by commits whose submodules differ.
		if err := os.RemoveAll(filepath.Join(c.gitDir, "modules")); err != nil {
			return err
		}
	}
	at := *c
	// What the URLs of submodules may be relative to.
	at.config = append(at.config[:len(at.config):len(at.config)], [2]string{"remote.origin.url", c.remote})
	update := []string{"submodule", "--quiet", "update", "--init", "--recursive"}
	_, err := at.run(ctx, append(update, "--depth=1")...)
	if err != nil && ctx.Err() == nil && !c.offline {
		_, err = at.run(ctx, update...) // the server may know nothing of depth
	}
	if err != nil && ctx.Err() == nil && c.offline {
		err = fmt.Errorf("git %s: its submodules are not kept here, and no remote is asked (offline)", redact(c.remote))
	}
	if err != nil || keepDir {
		return err
	}
	root, err := os.OpenRoot(c.workTree)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == ".git" && d.Type().IsRegular() {
			err = root.Remove(p)
		}
		return err
	})
}

// subdirectory moves the directory sub of dir to a place of its own in parent
// and removes dir. Symbolic links on the way are not followed.
func subdirectory(parent, dir, sub string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return dir, err
	}
	defer root.Close()
	for i, c := range sub + "/" {
		if c != '/' {
			continue
		}
		st, err := root.Lstat(sub[:i])
		if errors.Is(err, fs.ErrNotExist) {
			return dir, fmt.Errorf("the repository has no directory %q", sub)
		}
		if err != nil {
			return dir, err
		}
		if !st.IsDir() {
			return dir, fmt.Errorf("%q of the repository is not a directory", sub[:i])
		}
	}
	out, err := os.MkdirTemp(parent, "out-")
	if err != nil {
		return dir, err
	}
	// Onto the empty directory: rename(2) replaces it, os.Rename would not.
	if err := unix.Rename(filepath.Join(dir, filepath.FromSlash(sub)), out); err != nil {
		os.Remove(out)
		return dir, err
	}
	return out, os.RemoveAll(dir)
}
