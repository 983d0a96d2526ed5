package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// GitRef is what a ref of a remote is at.
type GitRef struct {
	Commit string // in hexadecimal, in full
	Tag    string // the object of an annotated tag; else empty
}

// IsCommit reports a full hash in hexadecimal, of SHA-1 or SHA-256.
func IsCommit(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

// Pin gives s, a source at this ref, its commit. It is an error if s demands
// another one.
func (r GitRef) Pin(s llb.Source) (llb.Source, error) {
	sum := strings.ToLower(s.Git.Checksum)
	if !isHex(sum) {
		return s, checksumError(s)
	}
	if !strings.HasPrefix(r.Commit, sum) && (r.Tag == "" || !strings.HasPrefix(r.Tag, sum)) {
		return s, fmt.Errorf("git %s: %s is at %s, expected checksum %s", redact(s.Ref), orDefault(s.Git.Ref), r.Commit, s.Git.Checksum)
	}
	s.Digest = commitDigest(r.Commit)
	return s, nil
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

func checksumError(s llb.Source) error {
	return fmt.Errorf("git %s: checksum %q is not a commit's hexadecimal hash", redact(s.Ref), s.Git.Checksum)
}

// Pin gives s the commit that its ref is at, as "sha1:…" or "sha256:…". A ref
// that is a full commit asks nobody.
func (g *Git) Pin(ctx context.Context, s llb.Source) (llb.Source, error) {
	if s.Digest != "" {
		return s, nil
	}
	if !isHex(strings.ToLower(s.Git.Checksum)) {
		return s, checksumError(s)
	}
	r := GitRef{Commit: strings.ToLower(s.Git.Ref)}
	if !IsCommit(r.Commit) {
		var err error
		if r, err = g.Resolve(ctx, s.Ref, s.Git.Ref); err != nil {
			return s, err
		}
	}
	return r.Pin(s)
}

// Resolve asks the remote what ref is at, once in a build. An empty one is the
// default branch.
func (g *Git) Resolve(ctx context.Context, remote, ref string) (GitRef, error) {
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
	if r.ref.Commit != "" {
		return r.ref, nil
	}
	if strings.HasPrefix(ref, "-") {
		return GitRef{}, fmt.Errorf("git %s: %q cannot be a ref", redact(remote), ref)
	}
	want := ref
	if want == "" {
		want = "HEAD"
	}
	if g.o.Offline {
		last, ok := g.lastRef(remote, want)
		if !ok {
			return last, fmt.Errorf("git %s: it is not known here what %s is at, and the remote is not asked (offline)", redact(remote), orDefault(ref))
		}
		r.ref = last
		return last, nil
	}
	c := g.command(remote)
	out, err := c.run(ctx, "ls-remote", "--", c.remote, want, want+"^{}")
	if err != nil {
		return GitRef{}, err
	}
	found, err := pickRef(out, want)
	if err != nil {
		return GitRef{}, fmt.Errorf("git %s: %w", redact(remote), err)
	}
	r.ref = found
	_ = g.keepRef(remote, want, found) // without it the next build has to ask again
	return found, nil
}

// pickRef finds ref in the output of ls-remote, whose patterns also match the
// ends of longer names. Branches go before tags, as with git checkout.
func pickRef(out, ref string) (GitRef, error) {
	have := map[string]string{}
	for line := range strings.Lines(out) {
		if sum, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && IsCommit(sum) {
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
			return GitRef{Commit: commit, Tag: sum}, nil
		}
		return GitRef{Commit: sum}, nil
	}
	if ref == "HEAD" {
		return GitRef{}, errors.New("the repository has no default branch; name one")
	}
	return GitRef{}, fmt.Errorf("the repository has no branch or tag %q (a commit must be given in full)", ref)
}

// refRecord is <key>-<hex>.ref. The remote, which may have a password, is in its
// name alone.
type refRecord struct {
	Ref    string `json:"ref"`
	Commit string `json:"commit"`
	Tag    string `json:"tag,omitempty"`
}

func (g *Git) refPath(remote, ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return g.key(remote) + "-" + hex.EncodeToString(sum[:8]) + ".ref"
}

// lastRef is what a ref was when the remote was last asked; false if that is
// not known.
func (g *Git) lastRef(remote, ref string) (GitRef, bool) {
	var r refRecord
	data, err := os.ReadFile(g.refPath(remote, ref))
	if err != nil || json.Unmarshal(data, &r) != nil || r.Ref != ref || !IsCommit(r.Commit) {
		return GitRef{}, false
	}
	return GitRef{Commit: r.Commit, Tag: r.Tag}, true
}

func (g *Git) keepRef(remote, ref string, at GitRef) error {
	data, err := json.Marshal(refRecord{Ref: ref, Commit: at.Commit, Tag: at.Tag})
	if err == nil {
		err = os.MkdirAll(g.dir, 0o755)
	}
	if err != nil {
		return err
	}
	temp, err := g.temp()
	if err != nil {
		return err
	}
	return writeAside(temp, g.refPath(remote, ref), data)
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
