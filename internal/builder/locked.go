package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/containerd/platforms"

	"github.com/861fb494/build/executor/source"
	"github.com/861fb494/build/internal/lockfile"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/internal/registry"
	"github.com/861fb494/build/llb"
)

// pinning says what the tags, URLs and branches of a build are. It is safe for
// concurrent use.
type pinning interface {
	// entry is what is locked for key; ask finds out what it is now, without a
	// key.
	entry(key lockfile.Key, ask func() (lockfile.Entry, error)) (lockfile.Entry, error)
	// chosen is told the manifest that a platform gets of an image's entry.
	chosen(e lockfile.Entry, platform string, manifest oci.Digest) error
	// String is the lock file's name.
	String() string
}

// lockedTo is a build that goes by a lock file.
type lockedTo struct {
	name string
	file lockfile.File
}

func (l lockedTo) String() string { return l.name }

func (l lockedTo) entry(key lockfile.Key, _ func() (lockfile.Entry, error)) (lockfile.Entry, error) {
	e, ok := l.file[key]
	if !ok {
		return e, fmt.Errorf("%s is not in %s: run 'build lock'", key, l.name)
	}
	return e, nil
}

func (l lockedTo) chosen(e lockfile.Entry, platform string, manifest oci.Digest) error {
	if want := e.Platforms[platform]; want != "" && want != manifest {
		return fmt.Errorf("%s says that %s for %s is %s, which is not so: %s has %s; run 'build lock'", l.name, e.Key, platform, want, e.Digest, manifest)
	}
	return nil
}

// keyOf is what s is locked under; the zero value for what is not locked, as the
// user's own files. Passwords are not written down.
func keyOf(s llb.Source) lockfile.Key {
	switch s.Scheme {
	case llb.Registry:
		return lockfile.Key{Kind: lockfile.Image, Name: s.Ref}
	case llb.HTTP:
		return lockfile.Key{Kind: lockfile.URL, Name: withoutPassword(s.Ref)}
	case llb.Git:
		return lockfile.Key{Kind: lockfile.Git, Name: withoutPassword(s.Ref), Ref: cmp.Or(s.Git.Ref, lockfile.HEAD)}
	}
	return lockfile.Key{}
}

// withoutPassword is a URL without its password and, where that may be a token,
// its user.
func withoutPassword(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User == nil {
		return s
	}
	if name := u.User.Username(); u.Scheme == "http" || u.Scheme == "https" {
		u.User = nil
	} else {
		u.User = url.User(name)
	}
	return u.String()
}

// moved is err, the failure to get what is locked, with what to do about it.
func moved(lock pinning, key lockfile.Key, err error) error {
	return fmt.Errorf("%w; %s is locked in %s: 'build lock --update=%s' takes what it is now", err, key, lock, key)
}

// lockedHTTP is the source of URLs of a build that may be locked.
type lockedHTTP struct {
	*source.HTTP
	lock pinning // may be nil
}

// Pin implements source.Source.
func (l lockedHTTP) Pin(ctx context.Context, s llb.Source) (llb.Source, error) {
	if l.lock == nil || s.Digest != "" || s.Checksum != "" {
		return l.HTTP.Pin(ctx, s)
	}
	e, err := l.lock.entry(keyOf(s), func() (lockfile.Entry, error) {
		s, err := l.HTTP.Pin(ctx, s)
		return lockfile.Entry{Digest: s.Digest}, err
	})
	if err != nil {
		return s, err
	}
	s.Digest = e.Digest
	return l.HTTP.Pin(ctx, s)
}

// Open implements source.Source.
func (l lockedHTTP) Open(ctx context.Context, s llb.Source) (source.Content, error) {
	c, err := l.HTTP.Open(ctx, s)
	var other *source.MismatchError
	if l.lock != nil && s.Checksum == "" && errors.As(err, &other) {
		err = moved(l.lock, keyOf(s), err)
	}
	return c, err
}

// lockedGit is the source of repositories of a build that may be locked.
type lockedGit struct {
	*source.Git
	lock pinning // may be nil
}

// Pin implements source.Source.
func (l lockedGit) Pin(ctx context.Context, s llb.Source) (llb.Source, error) {
	if l.lock == nil || s.Digest != "" || source.IsCommit(strings.ToLower(s.Git.Ref)) {
		return l.Git.Pin(ctx, s)
	}
	e, err := l.lock.entry(keyOf(s), func() (lockfile.Entry, error) {
		r, err := l.Git.Resolve(ctx, s.Ref, s.Git.Ref)
		return lockfile.Entry{Commit: r.Commit, Tag: r.Tag}, err
	})
	if err != nil {
		return s, err
	}
	return source.GitRef{Commit: e.Commit, Tag: e.Tag}.Pin(s)
}

// Open implements source.Source.
func (l lockedGit) Open(ctx context.Context, s llb.Source) (source.Content, error) {
	c, err := l.Git.Open(ctx, s)
	if l.lock != nil && errors.Is(err, source.ErrNoCommit) && !source.IsCommit(strings.ToLower(s.Git.Ref)) {
		err = moved(l.lock, keyOf(s), err)
	}
	return c, err
}

// resolve is Resolve of an image that has a name.
func (r *remoteImages) resolve(ctx context.Context, ref string, p oci.Platform) (llb.Source, oci.Image, error) {
	name, err := oci.ParseReference(ref)
	if r.lock == nil || err != nil || name.Digest != "" {
		return r.Images.Resolve(ctx, ref, p)
	}
	s := llb.Source{Scheme: llb.Registry, Ref: ref, Platform: p}
	key := keyOf(llb.Source{Scheme: llb.Registry, Ref: name.String()})
	e, err := r.lock.entry(key, func() (lockfile.Entry, error) { return r.ask(ctx, name, s) })
	if err != nil {
		return s, oci.Image{}, err
	}
	s.Digest = e.Digest
	img, err := r.Images.Image(ctx, s)
	if errors.Is(err, registry.ErrNotFound) {
		err = moved(r.lock, key, err)
	}
	if err == nil {
		err = r.lock.chosen(e, platforms.FormatAll(platforms.Normalize(p)), img.Desc.Digest)
	}
	return s, img.Config, err
}

// ask finds out what the image s is, to lock it.
func (r *remoteImages) ask(ctx context.Context, name oci.Reference, s llb.Source) (lockfile.Entry, error) {
	s, err := r.Images.Pin(ctx, s)
	if _, lerr := r.builder.Images.Get(name); err != nil && lerr == nil && ctx.Err() == nil {
		err = fmt.Errorf("%w; 'build lock --offline --update=%s' locks the image that is here, which other machines may not have", err, name.Familiar())
	}
	return lockfile.Entry{Digest: s.Digest}, err
}

// lockPath is where the Dockerfile's lock file is, and what messages call it;
// empty where the Dockerfile is no file.
func (c *contexts) lockPath() (path, name string) {
	if c.dockerfilePath == "" {
		return "", ""
	}
	return c.dockerfilePath + ".lock", c.dockerfileName + ".lock"
}

// readLock reads the lock file.
func (c *contexts) readLock() (lockfile.File, error) {
	path, name := c.lockPath()
	// Whatever else has that name must not block.
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is no regular file")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	f, err := c.openFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	data, err := readAll(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	file, err := lockfile.Parse(data)
	if e := (*lockfile.Error)(nil); errors.As(err, &e) && e.Line > 0 {
		name = fmt.Sprintf("%s:%d", name, e.Line)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return file, nil
}

// openLock has the lock file ready that a build is to go by.
func (j *job) openLock(context.Context) error {
	if !j.Locked {
		return nil
	}
	path, name := j.contexts.lockPath()
	if path == "" {
		return errors.New("--locked needs a Dockerfile that is a file: the lock file is beside it")
	}
	file, err := j.contexts.readLock()
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--locked: there is no %s: 'build lock' writes it", name)
	}
	j.lock = lockedTo{name: name, file: file}
	return err
}

// hintLock says so if a build that is not locked goes by something else than the
// lock file has. It is no more than a hint.
func (j *job) hintLock(context.Context) error {
	path, name := j.contexts.lockPath()
	if path == "" || j.lock != nil {
		return nil
	}
	file, err := j.contexts.readLock()
	if err != nil || len(file) == 0 {
		return nil
	}
	var other []lockfile.Key
	j.graph.Walk(func(n *llb.Node) {
		s, ok := n.Op.(llb.Source)
		if !ok || s.Digest == "" || s.Checksum != "" {
			return
		}
		is := s.Digest.String()
		if s.Scheme == llb.Git {
			is = s.Digest.Encoded()
		}
		key := keyOf(s)
		if e, ok := file[key]; ok && e.Value() != is && !slices.Contains(other, key) {
			other = append(other, key)
		}
	})
	if len(other) > 0 {
		text := fmt.Sprintf("%s is not what %s has", other[0], name)
		if n := len(other) - 1; n > 0 {
			text = fmt.Sprintf("%s, and %d more, are not what %s has", other[0], n, name)
		}
		j.Sink.Emit(progress.Warning{Message: text + ": with --locked the build goes by it, 'build lock --update' brings it up to date"})
	}
	return nil
}
