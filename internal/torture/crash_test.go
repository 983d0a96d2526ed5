package torture

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/interpose"
	"github.com/861fb494/build/internal/oci"
)

// victim is a command that gets killed.
type victim struct {
	name  string
	args  []string
	share int  // of the kills, in parts
	first bool // in a state directory that is not there yet
	// whole looks at what the command may have put out, be it killed or not.
	whole func(r *root) error

	time  time.Duration // that it takes
	calls int           // that it makes and that change files of the state directory
}

func (r *root) victims() []*victim {
	archive := filepath.Join(r.out, "x.tar")
	pushed := r.registry + "/torture/x"
	return []*victim{
		{name: "build", args: r.building("--no-cache", "--reproducible", "-t", "x"), share: 8},
		{name: "build what is missing", args: r.building("--reproducible", "-t", "x"), share: 4},
		{name: "build of another kind", args: r.building("-t", "y", "--cache-to", "type=local,mode=max,dest="+filepath.Join(r.out, "cache")), share: 2},
		{name: "export", args: r.building("-o", "type=oci,dest="+archive), share: 3,
			whole: func(*root) error { return wholeArchive(archive) }},
		{name: "push", args: r.building("--no-cache", "-o", "type=registry,name="+pushed), share: 3,
			whole: func(*root) error { return wholeImage(r.registry, "torture/x") }},
		{name: "save", args: []string{"save", "-o", archive, "x"}, share: 1,
			whole: func(*root) error { return wholeArchive(archive) }},
		{name: "prune", args: []string{"prune", "--all"}, share: 4},
		{name: "forget", args: []string{"rmi", "x"}, share: 1},
		{name: "run", args: []string{"run", "--rm", "x", "cat", "/sum"}, share: 2},
		{name: "fsck", args: []string{"fsck"}, share: 1},
		{name: "first build", args: r.building("--reproducible", "-t", "x"), share: 1, first: true},
		{name: "first build with copies", args: r.building("--reproducible", "--storage-driver", "plain", "-t", "x"), share: 1, first: true},
	}
}

// measure runs the victim to its end. What it works upon may be missing.
func (v *victim) measure(r *root) error {
	v.calls = 0
	cmd := r.command(v.args...)
	begun := time.Now()
	err := interpose.Run(cmd, r.dir, interpose.Options{}, func(interpose.Call) interpose.Action {
		v.calls++
		return interpose.Action{}
	})
	v.time = time.Since(begun)
	return err
}

// kill runs the victim and ends it somewhere, and says where.
func (v *victim) kill(r *root, rng *rand.Rand) (where string, err error) {
	cmd := r.command(v.args...)
	if rng.IntN(3) == 0 {
		n, at := 0, 1+rng.IntN(v.calls+1)
		where = fmt.Sprintf("%s killed before its change %d of about %d", v.name, at, v.calls)
		err := interpose.Run(cmd, r.dir, interpose.Options{}, func(c interpose.Call) interpose.Action {
			n++
			if n == at {
				where += ", " + c.Name + " of " + class(c.Path)
			}
			return interpose.Action{Kill: n == at}
		})
		return where, only(err)
	}
	after := time.Duration(rng.Int64N(int64(v.time + v.time/10)))
	where = fmt.Sprintf("%s killed after %v of about %v", v.name, after.Round(time.Millisecond/10), v.time.Round(time.Millisecond))
	if err := cmd.Start(); err != nil {
		return where, err
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() }) // it may have ended
	defer timer.Stop()
	return where, only(cmd.Wait())
}

// only is err unless it is that of a command which failed or was killed.
func only(err error) error {
	if err == nil || strings.HasPrefix(err.Error(), "exit status ") || strings.HasPrefix(err.Error(), "signal: killed") {
		return nil
	}
	return err
}

// Whenever a command is killed, nothing half of it is left under a name, and the
// next build makes the same image as one in a fresh directory.
func TestCrash(t *testing.T) {
	l, rng := open(t), random(t)
	r := l.root(t)
	r.right(t, "nothing")
	var lots []*victim
	for _, v := range r.victims() {
		on := r
		if v.first {
			on = l.root(t)
		}
		if err := v.measure(on); err != nil {
			t.Fatalf("%s: %v", v.name, err)
		}
		for range v.share {
			lots = append(lots, v)
		}
		if v.name == "forget" || v.name == "prune" {
			r.right(t, v.name)
		}
	}
	begun, since := time.Now(), []string(nil)
	for n := range *kills {
		v := lots[rng.IntN(len(lots))]
		if v.first {
			first := l.root(t)
			where, err := v.kill(first, rng)
			if err != nil {
				t.Fatal(where, err)
			}
			first.healthy(t, fmt.Sprint(n, ": ", where))
			os.RemoveAll(filepath.Dir(first.dir))
			continue
		}
		where, err := v.kill(r, rng)
		since = append(since, fmt.Sprintf("%d: %s", n, where))
		if err == nil {
			err = r.whole(v)
		}
		if err != nil {
			t.Fatalf("%v, after\n%s", err, strings.Join(since, "\n"))
		}
		if rng.IntN(6) == 0 || n == *kills-1 {
			r.healthy(t, strings.Join(since, "\n"))
			since = nil
		}
	}
	t.Logf("%d kills in %v", *kills, time.Since(begun).Round(time.Second))
}

// healthy fails the test unless the next build is right and nothing is left of
// those before.
func (r *root) healthy(t *testing.T, after string) {
	t.Helper()
	r.right(t, after)
	r.sound(t, after)
	r.clean(t, after)
}

// whole is an error if an image has a name and is not whole, or the victim has
// put out something that is not.
func (r *root) whole(v *victim) error {
	s, err := image.Open(filepath.Join(r.dir, "images"))
	if err != nil {
		return err
	}
	list, err := s.List()
	if err != nil {
		return err
	}
	for _, n := range list {
		m, err := s.Manifest(n.Desc.Digest)
		if err == nil {
			_, err = s.Config(m.Config.Digest)
		}
		if err != nil {
			return fmt.Errorf("half an image has the name %s: %w", n.Ref, err)
		}
	}
	if v.whole == nil {
		return nil
	}
	return v.whole(r)
}

// wholeArchive is an error if there is an OCI archive at the path which lacks
// something. It is removed.
func wholeArchive(name string) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer os.Remove(name)
	defer f.Close()
	blobs := map[string][]byte{}
	var index []byte
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("half an archive: %w", err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return fmt.Errorf("half an archive: %w", err)
		}
		if h.Name == "index.json" {
			index = data
		}
		if dir, base := path.Split(h.Name); dir == "blobs/sha256/" && base != "" {
			if got := fmt.Sprintf("%x", sha256.Sum256(data)); got != base {
				return fmt.Errorf("an archive with a blob %s that is %s", base, got)
			}
			blobs[base] = data
		}
	}
	return complete(index, func(d oci.Descriptor) ([]byte, error) {
		data, ok := blobs[d.Digest.Encoded()]
		if !ok {
			return nil, fmt.Errorf("the archive lacks %s", d.Digest)
		}
		return data, nil
	})
}

// complete is an error if something cannot be had that a manifest or index
// refers to.
func complete(document []byte, get func(oci.Descriptor) ([]byte, error)) error {
	var doc struct {
		Config            *oci.Descriptor
		Layers, Manifests []oci.Descriptor
	}
	if err := json.Unmarshal(document, &doc); err != nil {
		return err
	}
	parts := doc.Layers
	if doc.Config != nil {
		parts = append(parts, *doc.Config)
	}
	for _, d := range parts {
		if _, err := get(d); err != nil {
			return err
		}
	}
	for _, d := range doc.Manifests {
		data, err := get(d)
		if err == nil {
			err = complete(data, get)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wholeImage is an error if a registry has an image which lacks something.
func wholeImage(registry, name string) error {
	fetch := func(kind, id string) ([]byte, error) {
		req, err := http.NewRequest(http.MethodGet, "http://"+registry+"/v2/"+name+"/"+kind+"/"+id, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return nil, fs.ErrNotExist
		}
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("the registry answers %s", resp.Status)
		}
		return io.ReadAll(resp.Body)
	}
	manifest, err := fetch("manifests", "latest")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return complete(manifest, func(d oci.Descriptor) ([]byte, error) {
		data, err := fetch("blobs", d.Digest.String())
		if err != nil {
			return nil, fmt.Errorf("half an image was pushed: %s: %w", d.Digest, err)
		}
		return data, nil
	})
}

// Of two builds that want the same, either may be killed: the other takes over
// what it was at.
func TestCrashBeside(t *testing.T) {
	l, rng := open(t), random(t)
	r := l.root(t)
	begun := time.Now()
	r.right(t, "nothing")
	takes := time.Since(begun)
	times := max(*kills/10, 3)
	for n := range times {
		r.must(t, "prune", "--all")
		after := time.Duration(rng.Int64N(int64(takes)))
		where := fmt.Sprintf("%d: one of two builds was killed after %v", n, after.Round(time.Millisecond/10))
		victim := r.command(r.building("--reproducible", "-t", "y")...)
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { _ = victim.Process.Kill() }) // it may have ended
		r.right(t, where)
		timer.Stop()
		_ = victim.Process.Kill()
		if err := only(victim.Wait()); err != nil {
			t.Fatal(err)
		}
		r.healthy(t, where)
	}
	t.Logf("%d kills in %v", times, time.Since(begun).Round(time.Second))
}
