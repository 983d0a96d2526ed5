package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/861fb494/build/internal/flock"
	"github.com/861fb494/build/llb"
)

// Git is the source of git repositories, for one build. It runs the git
// command, without the configuration of system and user. What it fetches it
// keeps in a directory, which several processes may share:
//
//	<key>.git        a bare repository; its fetches are shallow where they can be
//	<key>.lock       held while that is used
//	<key>-<hex>.ref  what a ref was when the remote was last asked
//
// where key is made of the remote, and hex of the ref. What nobody holds the
// lock of may be deleted at any time.
type Git struct {
	dir string
	o   GitOptions

	mu   sync.Mutex
	refs map[refKey]*resolvedRef
}

// refKey is a ref of a remote.
type refKey struct{ remote, ref string }

// resolvedRef is what a ref was in this build; its mutex is held while the
// remote is asked.
type resolvedRef struct {
	mu  sync.Mutex
	ref GitRef
}

// GitOptions are the surroundings of a Git. The zero value serves for what is
// public.
type GitOptions struct {
	// Secret finds a secret of the build by its name; nil: there are none.
	// GIT_AUTH_HEADER and GIT_AUTH_TOKEN, also with ".HOST" behind, are sent to
	// HTTP remotes: the one as it is, the other as a password.
	Secret func(name string) ([]byte, bool)
	// SSHSocket is the path of an ssh agent's socket; empty: only the user's
	// own keys are tried.
	SSHSocket string
	// Offline asks no remote: what is not here is an error.
	Offline bool
	// Temp is a directory of the process's own, in the file system that the
	// repositories are in; nil: theirs.
	Temp func() (string, error)
}

// NewGit keeps repositories in dir, which is made when the first is fetched.
func NewGit(dir string, o GitOptions) *Git {
	return &Git{dir: dir, o: o, refs: map[refKey]*resolvedRef{}}
}

// Open checks a pinned source out into a directory of its own.
func (g *Git) Open(ctx context.Context, s llb.Source) (Content, error) {
	c, unlock, err := g.fetched(ctx, s)
	if err != nil {
		return Content{}, err
	}
	defer unlock()
	temp, err := g.temp()
	if err != nil {
		return Content{}, err
	}
	dir, err := c.checkout(ctx, temp, s.Digest.Encoded(), s.Git)
	if err != nil && !g.o.Offline && c.dropped(ctx) {
		if err = c.fetch(ctx, s.Digest.Encoded(), s.Git.Ref); err == nil {
			dir, err = c.checkout(ctx, temp, s.Digest.Encoded(), s.Git)
		}
	}
	return Content{Dir: dir}, err
}

// fetched is git in a repository that has the commit of a pinned source. It is
// locked until unlock is called.
func (g *Git) fetched(ctx context.Context, s llb.Source) (_ *gitCommand, unlock func(), err error) {
	commit := s.Digest.Encoded()
	if !IsCommit(commit) {
		return nil, nil, fmt.Errorf("git %s: not pinned", redact(s.Ref))
	}
	if err := os.MkdirAll(g.dir, 0o755); err != nil {
		return nil, nil, err
	}
	unlock, err = g.lock(ctx, s.Ref)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	c := g.command(s.Ref)
	c.gitDir = g.key(s.Ref) + ".git"
	now := time.Now()
	_ = os.Chtimes(c.gitDir, now, now) // where it is here: garbage is what was used longest ago
	if g.o.Offline {
		if !c.has(ctx, commit) {
			err = fmt.Errorf("git %s: commit %s is not here, and the remote is not asked (offline)", redact(s.Ref), commit)
		}
		return c, unlock, err
	}
	err = c.fetch(ctx, commit, s.Git.Ref)
	if err != nil && !errors.Is(err, ErrNoCommit) && c.dropped(ctx) {
		err = c.fetch(ctx, commit, s.Git.Ref)
	}
	return c, unlock, err
}

// dropped removes the repository if it is damaged: by a process that was killed,
// a full disk, a disk that errs.
func (c *gitCommand) dropped(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	if _, err := c.run(ctx, "fsck", "--no-dangling"); err == nil || ctx.Err() != nil {
		return false
	}
	return os.RemoveAll(c.gitDir) == nil
}

func (g *Git) temp() (string, error) {
	if g.o.Temp == nil {
		return g.dir, nil
	}
	return g.o.Temp()
}

func (g *Git) key(remote string) string {
	sum := sha256.Sum256([]byte(remote))
	return filepath.Join(g.dir, hex.EncodeToString(sum[:16]))
}

// lock keeps others from the remote's repository: processes, and goroutines of
// this one.
func (g *Git) lock(ctx context.Context, remote string) (unlock func(), err error) {
	f, err := os.OpenFile(g.key(remote)+".lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	done := make(chan error)
	go func() {
		err := flock.Alone(f)
		select {
		case done <- err:
		case <-ctx.Done(): // nobody waits any more: give the lock back
			f.Close()
		}
	}()
	select {
	case err = <-done:
		if err != nil {
			f.Close()
			return nil, err
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// command prepares git for a remote.
func (g *Git) command(remote string) *gitCommand {
	c := &gitCommand{remote: remote, sshSocket: g.o.SSHSocket, offline: g.o.Offline}
	u, err := url.Parse(remote)
	if err != nil || g.o.Secret == nil || u.Scheme != "http" && u.Scheme != "https" {
		return c
	}
	for _, name := range []string{"GIT_AUTH_HEADER." + u.Host, "GIT_AUTH_TOKEN." + u.Host, "GIT_AUTH_HEADER", "GIT_AUTH_TOKEN"} {
		if v, ok := g.o.Secret(name); ok {
			c.authorize(u, strings.HasPrefix(name, "GIT_AUTH_TOKEN"), strings.TrimSpace(string(v)))
			break
		}
	}
	return c
}
