package builder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/cache/remote"
	"github.com/861fb494/build/executor"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/internal/progress"
	"github.com/861fb494/build/llb"
)

// mountUses are the cache mounts that a build's steps ran with.
type mountUses struct {
	mu    sync.Mutex
	used  map[string]mountUse // by id
	tried map[string]bool     // directories that were to be restored
	// poor are mounts, by id, that could not be restored although there is nothing
	// wrong with what the cache has: what a step made of an empty one is no
	// substitute for that.
	poor map[string]bool
	// damaged are those, by id, of which a cache has something that is wrong.
	damaged map[string]bool
}

type mountUse struct{ name, dir string }

// mountName is what the Dockerfile calls a cache mount.
func (j *job) mountName(m llb.Mount) string {
	if ns := j.Frontend.BuildArgs["BUILDKIT_CACHE_MOUNT_NS"]; ns != "" {
		return strings.TrimPrefix(m.CacheID, ns+"/")
	}
	return m.CacheID
}

// mountUsed notes that a step runs with the mount.
func (j *job) mountUsed(id string, m llb.Mount, dir string) {
	u := &j.mounts
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.used == nil {
		u.used = map[string]mountUse{}
	}
	u.used[id] = mountUse{name: j.mountName(m), dir: dir}
}

// firstTry reports whether dir has not been restored by this build, or tried to
// be. A step that empties a mount has its reasons.
func (u *mountUses) firstTry(dir string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.tried[dir] {
		return false
	}
	if u.tried == nil {
		u.tried = map[string]bool{}
	}
	u.tried[dir] = true
	return true
}

// restoreMount gives a cache mount what it has in the first cache that has it. One
// that is not to be had is a warning: the step begins with an empty one.
func (j *job) restoreMount(ctx context.Context, id string, m llb.Mount, dir string) (map[string][]byte, error) {
	name := j.mountName(m)
	imports := j.remote.imports
	if imports == nil || !slices.ContainsFunc(imports.list, func(i *imported) bool { return i.mounts.Wants(name) }) || !j.mounts.firstTry(dir) {
		return nil, nil
	}
	imports.open(ctx)
	poor := false
	for _, i := range imports.list {
		if i.cache == nil || !i.mounts.Wants(name) {
			continue
		}
		stored, ok := i.cache.Mount(id)
		if !ok {
			continue
		}
		notes, err := j.restoreFrom(ctx, i, stored, dir)
		if err == nil {
			return notes, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, remote.ErrDamaged) {
			j.mounts.setDamaged(id)
		} else {
			poor = true
		}
		imports.warn("the cache mount begins empty: "+err.Error(), nil)
		if err := clearDir(dir); err != nil {
			return nil, err
		}
	}
	if poor {
		j.mounts.setPoor(id)
	}
	return nil, nil
}

func (u *mountUses) setPoor(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.poor == nil {
		u.poor = map[string]bool{}
	}
	u.poor[id] = true
}

func (u *mountUses) setDamaged(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.damaged == nil {
		u.damaged = map[string]bool{}
	}
	u.damaged[id] = true
}

func (j *job) restoreFrom(ctx context.Context, i *imported, m remote.StoredMount, dir string) (notes map[string][]byte, err error) {
	name := fmt.Sprintf("restore cache mount %s from %s", m.ID, i.place)
	var fetched int64
	_ = internalStep(j.Sink, "mount:"+dir, name, func(step progress.Step) error {
		count := counter{sink: j.Sink, step: step, name: m.ID}
		var once sync.Once
		notes, fetched, err = i.cache.RestoreMount(ctx, m, dir, remote.RestoreOptions{
			Limit: i.mounts.Limit, Progress: count.set,
			Notice: func(path string, err error) {
				once.Do(func() {
					w := progress.Warning{Message: fmt.Sprintf("the cache mount %s has extended attributes that are left out", m.ID), Detail: path + ": " + err.Error()}
					j.Sink.Emit(w)
				})
			},
		})
		if err != nil {
			return nil // the build goes on
		}
		text := fmt.Sprintf("%d files, %d bytes; %d bytes fetched\n", m.Files, m.Size, fetched)
		j.Sink.Emit(progress.Log{Step: step, Stream: 1, Data: []byte(text), Time: time.Now()})
		return nil
	})
	return notes, err
}

// counter tells the display how far something is, not too often.
type counter struct {
	sink progress.Sink
	step progress.Step
	name string

	mu   sync.Mutex
	last time.Time
}

func (c *counter) set(current, total int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if current < total && now.Sub(c.last) < 100*time.Millisecond {
		return
	}
	c.last = now
	c.sink.Emit(progress.Counter{Step: c.step, Name: c.name, Current: current, Total: total, Unit: "B", Done: current == total, Time: now})
}

// clearDir removes what is in a directory.
func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// mountOptions are the cache mounts of the build's steps, whether they ran or
// not. results are those of steps that are known.
func (j *job) mountOptions(ctx context.Context, choice remote.MountChoice, results map[oci.Digest]executor.Result) remote.MountOptions {
	o := remote.MountOptions{Limit: choice.Limit}
	if !choice.Any() {
		return o
	}
	names := map[string]string{} // by id
	found := map[string]bool{}   // names
	j.graph.Walk(func(n *llb.Node) {
		op, _ := n.Op.(llb.Exec)
		for _, m := range op.Mounts {
			name := j.mountName(m)
			if m.Type != llb.MountCache || !choice.Wants(name) {
				continue
			}
			found[name] = true
			var from executor.Result
			if m.Input != 0 {
				var ok bool
				if from, ok = results[n.Inputs[m.Input].Digest]; !ok {
					// What it begins with is not known, and with that the end of its id.
					m.Input = 0
					o.Keep = append(o.Keep, executor.MountID(m, from)+" from ")
					continue
				}
			}
			names[executor.MountID(m, from)] = name
		}
	})
	j.mounts.mu.Lock()
	defer j.mounts.mu.Unlock()
	for id, u := range j.mounts.used {
		if choice.Wants(u.name) {
			names[id] = u.name
		}
	}
	for id := range names {
		use, used := j.mounts.used[id]
		o.List = append(o.List, remote.Mount{ID: id, Used: used && !j.mounts.poor[id], Damaged: j.mounts.damaged[id], Hold: func(ctx context.Context, wait time.Duration) (*cache.HeldMount, error) {
			return j.Store.HoldMount(ctx, id, use.dir, wait)
		}})
	}
	warn := func(message string) { j.Sink.Emit(progress.Warning{Message: message}) }
	for _, id := range choice.IDs {
		if !found[id] {
			warn(fmt.Sprintf("--cache-to: mounts=%s: no step has a cache mount of that id", id))
		}
	}
	o.Warn = warn
	o.From = func(id string) []*remote.Cache { return j.remote.imports.having(ctx, names[id]) }
	return o
}

// having are the caches whose mount name is wanted.
func (m *imports) having(ctx context.Context, name string) []*remote.Cache {
	if m == nil || len(m.list) == 0 {
		return nil
	}
	m.open(ctx)
	var out []*remote.Cache
	for _, i := range m.list {
		if i.cache != nil && i.mounts.Wants(name) {
			out = append(out, i.cache)
		}
	}
	return out
}

// mountLines tell what became of each mount of an export.
func mountLines(mounts []remote.MountStats) string {
	var b strings.Builder
	for _, m := range mounts {
		fmt.Fprintf(&b, "cache mount %s: %d files, %d bytes; ", m.ID, m.Files, m.Size)
		if m.Kept {
			b.WriteString("what the cache has of it is kept\n")
			continue
		}
		fmt.Fprintf(&b, "%d bytes sent\n", m.Sent)
	}
	return b.String()
}
