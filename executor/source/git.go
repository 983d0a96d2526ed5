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

	"golang.org/x/sys/unix"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// Git is the source of git repositories, for one build. It runs the git
// command, without the configuration of system and user. What it fetches it
// keeps in a directory, which several processes may share:
//
//	<key>.git   a bare repository; its fetches are shallow where they can be
//	<key>.lock  held while that is used
//
// where key is made of the remote. What nobody holds the lock of may be
// deleted at any time.
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
	mu   sync.Mutex
	refs remoteRef
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
}

// NewGit keeps repositories in dir, which is made when the first is fetched.
func NewGit(dir string, o GitOptions) *Git {
	return &Git{dir: dir, o: o, refs: map[refKey]*resolvedRef{}}
}

// Pin gives s the commit that its ref is at, as "sha1:…" or "sha256:…". A ref
// that is a full commit asks nobody.
func (g *Git) Pin(ctx context.Context, s llb.Source) (llb.Source, error) {
	if s.Digest != "" {
		return s, nil
	}
	sum := strings.ToLower(s.Git.Checksum)
	if strings.Trim(sum, "0123456789abcdef") != "" {
		return s, fmt.Errorf("git %s: checksum %q is not a commit's hexadecimal hash", redact(s.Ref), s.Git.Checksum)
	}
	r := remoteRef{commit: strings.ToLower(s.Git.Ref)}
	if !isCommit(r.commit) {
		var err error
		if r, err = g.resolve(ctx, s.Ref, s.Git.Ref); err != nil {
			return s, err
		}
	}
	if !strings.HasPrefix(r.commit, sum) && (r.tag == "" || !strings.HasPrefix(r.tag, sum)) {
		return s, fmt.Errorf("git %s: %s is at %s, expected checksum %s", redact(s.Ref), orDefault(s.Git.Ref), r.commit, s.Git.Checksum)
	}
	s.Digest = commitDigest(r.commit)
	return s, nil
}

// remoteRef is what ls-remote says of a ref.
type remoteRef struct {
	name   string // "refs/heads/main"
	commit string
	tag    string // the object of an annotated tag
}

// resolve asks the remote what ref is, once in a build.
func (g *Git) resolve(ctx context.Context, remote, ref string) (remoteRef, error) {
	key := refKey{remote, ref}
	g.mu.Lock()
	r := g.refs[key]
	if r == nil {
		r = &resolvedRef{}
		g.refs[key] = r
	}
	g.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refs.commit != "" {
		return r.refs, nil
	}
	if strings.HasPrefix(ref, "-") {
		return remoteRef{}, fmt.Errorf("git %s: %q cannot be a ref", redact(remote), ref)
	}
	want := ref
	if want == "" {
		want = "HEAD"
	}
	c := g.command(remote)
	out, err := c.run(ctx, "ls-remote", "--", c.remote, want, want+"^{}")
	if err != nil {
		return remoteRef{}, err
	}
	found, err := pickRef(out, want)
	if err != nil {
		return remoteRef{}, fmt.Errorf("git %s: %w", redact(remote), err)
	}
	r.refs = found
	return found, nil
}

// pickRef finds ref in the output of ls-remote, whose patterns also match the
// ends of longer names. Branches go before tags, as with git checkout.
func pickRef(out, ref string) (remoteRef, error) {
	have := map[string]string{}
	for line := range strings.Lines(out) {
		if sum, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && isCommit(sum) {
			have[name] = sum
		}
	}
	short := strings.TrimPrefix(ref, "refs/")
	names := []string{
		"refs/" + short,
		"refs/heads/" + strings.TrimPrefix(short, "heads/"),
		"refs/tags/" + strings.TrimPrefix(short, "tags/"),
	}
	if ref == "HEAD" {
		names = []string{ref}
	}
	for _, name := range names {
		sum := have[name]
		if sum == "" {
			continue
		}
		if commit := have[name+"^{}"]; commit != "" {
			return remoteRef{name: name, commit: commit, tag: sum}, nil
		}
		return remoteRef{name: name, commit: sum}, nil
	}
	if ref == "HEAD" {
		return remoteRef{}, errors.New("the repository has no default branch; name one")
	}
	return remoteRef{}, fmt.Errorf("the repository has no branch or tag %q (a commit must be given in full)", ref)
}

// Open checks a pinned source out into a directory of its own.
func (g *Git) Open(ctx context.Context, s llb.Source) (Content, error) {
	c, unlock, err := g.fetched(ctx, s)
	if err != nil {
		return Content{}, err
	}
	defer unlock()
	dir, err := c.checkout(ctx, g.dir, s.Digest.Encoded(), s.Git)
	return Content{Dir: dir}, err
}

// fetched is git in a repository that has the commit of a pinned source. It is
// locked until unlock is called.
func (g *Git) fetched(ctx context.Context, s llb.Source) (_ *gitCommand, unlock func(), err error) {
	commit := s.Digest.Encoded()
	if !isCommit(commit) {
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
	err = c.fetch(ctx, commit, s.Git.Ref)
	if err != nil && ctx.Err() == nil && !errors.Is(err, errNoCommit) {
		if _, broken := c.run(ctx, "fsck", "--connectivity-only", "--no-dangling"); broken != nil {
			// Left so by a process that was killed, or by a full disk.
			if err := os.RemoveAll(c.gitDir); err != nil {
				return nil, unlock, err
			}
			err = c.fetch(ctx, commit, s.Git.Ref)
		}
	}
	return c, unlock, err
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
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
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
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// command prepares git for a remote.
func (g *Git) command(remote string) *gitCommand {
	c := &gitCommand{remote: remote, sshSocket: g.o.SSHSocket}
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

// isCommit reports a full hash in hexadecimal, of SHA-1 or SHA-256.
func isCommit(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

func commitDigest(commit string) oci.Digest {
	if len(commit) == 64 {
		return oci.Digest("sha256:" + commit)
	}
	return oci.Digest("sha1:" + commit)
}

func orDefault(ref string) string {
	if ref == "" {
		return "the default branch"
	}
	return ref
}
