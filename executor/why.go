package executor

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/861fb494/build/cache"
	"github.com/861fb494/build/internal/blake"
	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/solver"
)

// Names of parts. Those of files are followed by the index of the action or the
// target of the mount.
const (
	partOperation   = "operation"
	partBase        = "base"
	partFiles       = "files "
	partMount       = "mount "
	partArg         = "ARG "
	partEnv         = "ENV "
	partImage       = "image"
	partCommand     = "command"
	partInstruction = "the instruction"
	partPlatform    = "platform"
	partContext     = "context of " // and a part of files, which are the main context's
)

// surroundings are what a RUN has beside command, variables and mounts. A part is
// there for what differs from unset.
var surroundings = []struct {
	name, unset string
	of          func(llb.Exec) any
}{
	{"the user", "", func(e llb.Exec) any { return e.User }},
	{"the working directory", "", func(e llb.Exec) any { return e.Dir }},
	{"the network", "", func(e llb.Exec) any { return e.Network }},
	{"the security mode", "", func(e llb.Exec) any { return e.Security }},
	{"the host name", "", func(e llb.Exec) any { return e.Hostname }},
	{"the list of hosts", "[]", func(e llb.Exec) any { return e.Hosts }},
	{"the list of devices", "[]", func(e llb.Exec) any { return e.Devices }},
	{"the list of ulimits", "[]", func(e llb.Exec) any { return e.Ulimits }},
	{"the size of /dev/shm", "0", func(e llb.Exec) any { return e.ShmSize }},
	{"the parent cgroup", "", func(e llb.Exec) any { return e.CgroupParent }},
	{"the here-document", "", func(e llb.Exec) any { return string(e.Stdin) }},
	{"the time that the result is good for", "0", func(e llb.Exec) any { return e.TTL }},
}

// brief is a value as it is kept to be compared: nobody can read it off, since a
// build argument may be more private than its author thought.
func brief(v any) string {
	sum := blake.Sum256(fmt.Appendf(nil, "%v", v))
	return hex.EncodeToString(sum[:8])
}

// describe takes an operation apart for people. All of it is in the operation's
// digest already.
func (w *Worker) describe(n *llb.Node) []solver.Part {
	var parts []solver.Part
	info := func(name, value string) { parts = append(parts, solver.Part{Name: name, Value: value, Info: true}) }
	m := w.Meta[n.Digest]
	info(partPlatform, m.Platform)
	if len(n.Inputs) > 0 {
		if s, ok := n.Inputs[0].Op.(llb.Source); ok && s.Scheme == llb.Registry {
			ref, _, _ := strings.Cut(s.Ref, "@")
			info(partImage, ref+"@"+s.Digest.String())
		}
	}
	for _, v := range m.Variables {
		kind := partEnv
		if v.Arg {
			kind = partArg
		}
		info(kind+v.Name, brief(v.Value))
	}
	switch op := n.Op.(type) {
	case llb.Exec:
		info(partCommand, brief(op.Args))
		for _, m := range op.Mounts {
			at := m.Target
			if at == "" {
				at = "id=" + m.ID
			}
			m.Input = 0 // an index says nothing
			info("options of mount "+at, brief(m))
		}
		for _, x := range surroundings {
			if v := fmt.Sprint(x.of(op)); v != x.unset {
				info(x.name, brief(v))
			}
		}
	case llb.File:
		info(partInstruction, brief(op.Actions))
	}
	for _, part := range contextParts(n) {
		info(partContext+part, mainContext)
	}
	return parts
}

// reason compares k with what was last recorded at its place.
func (c Records) reason(k solver.Key) string {
	last, err := c.Store.Last(k.Place)
	if errors.Is(err, fs.ErrNotExist) {
		return c.neverBuilt(k)
	}
	if err != nil {
		return "what was built before cannot be compared: " + err.Error()
	}
	if last.Key == k.Digest {
		return "its result of " + when(last.Created) + " is gone: collected, or damaged"
	}
	return c.difference(last, k)
}

// neverBuilt tells a step that is new from one that was built for another
// platform.
func (c Records) neverBuilt(k solver.Key) string {
	if last, err := c.Store.Last(elsewhere(k.Place)); err == nil {
		was, is := partValue(last.Parts, partPlatform), solverPart(k.Parts, partPlatform)
		if was != "" && was != is {
			return fmt.Sprintf("never built here for %s, only for %s", is, was)
		}
	}
	return "never built here"
}

// elsewhere is the place of the step on any platform.
func elsewhere(place string) string {
	if i := strings.LastIndexByte(place, 0); i >= 0 {
		return place[:i+1] + "any platform"
	}
	return place
}

func when(t time.Time) string {
	t = t.Local()
	if t.Year() == time.Now().Year() {
		return t.Format("2 Jan, 15:04")
	}
	return t.Format("2 Jan 2006, 15:04")
}

func partValue(parts []cache.Part, name string) string {
	for _, p := range parts {
		if p.Name == name {
			return p.Value
		}
	}
	return ""
}

func solverPart(parts []solver.Part, name string) string {
	for _, p := range parts {
		if p.Name == name {
			return p.Value
		}
	}
	return ""
}

// difference says in one line what of k is another than in the last record: the
// parts that can be named first, those that only sum up last.
func (c Records) difference(last *cache.Record, k solver.Key) string {
	var found []string
	add := func(s string) { found = append(found, s) }
	variables := variableChanges(last.Parts, k.Parts)
	for _, p := range k.Parts {
		old, had := lookUp(last.Parts, p.Name)
		if had && old == p.Value {
			continue
		}
		switch {
		case p.Name == partOperation || p.Name == partBase || p.Name == partPlatform || strings.HasPrefix(p.Name, partContext):
			// told by others, or below
		case p.Name == partImage:
			if had {
				add(moved(old, p.Value))
			}
		case p.Name == partCommand:
			add("the command changed")
		case isVariable(p.Name):
			// below
		case p.Name == partInstruction && len(variables) > 0:
			// It has their values in its words.
		case strings.HasPrefix(p.Name, partFiles), strings.HasPrefix(p.Name, partMount):
			add(c.files(p, oci.Digest(old), had))
		case p.Info && strings.HasPrefix(p.Name, "options of mount "):
			add("mount " + strings.TrimPrefix(p.Name, "options of mount ") + " differs")
		case p.Info:
			add(p.Name + " changed")
		}
	}
	for _, x := range surroundings {
		_, had := lookUp(last.Parts, x.name)
		if had && solverPart(k.Parts, x.name) == "" {
			add(x.name + " changed")
		}
	}
	found = append(found, variables...)
	if len(found) == 0 {
		if old, _ := lookUp(last.Parts, partBase); old != solverPart(k.Parts, partBase) {
			return "what it builds on changed"
		}
		return "the instruction changed"
	}
	const most = 3
	if len(found) > most {
		return strings.Join(found[:most], ", ") + fmt.Sprintf(" and %d more", len(found)-most)
	}
	return strings.Join(found, ", ")
}

func isVariable(part string) bool {
	return strings.HasPrefix(part, partArg) || strings.HasPrefix(part, partEnv)
}

func variableOf(part string) string {
	_, name, _ := strings.Cut(part, " ")
	return name
}

// variableChanges are the variables that have another value than before, or had
// one: "ARG GIT_SHA changed". That one is set by the other instruction now, to
// the same value, is no change.
func variableChanges(old []cache.Part, now []solver.Part) []string {
	before, after := map[string]string{}, map[string]bool{}
	for _, p := range old {
		if isVariable(p.Name) {
			before[variableOf(p.Name)] = p.Value
		}
	}
	var found []string
	for _, p := range now {
		if !isVariable(p.Name) {
			continue
		}
		name := variableOf(p.Name)
		after[name] = true
		switch was, had := before[name]; {
		case !had:
			found = append(found, p.Name+" changed (was not set)")
		case was != p.Value:
			found = append(found, p.Name+" changed")
		}
	}
	for _, p := range old {
		if isVariable(p.Name) && !after[variableOf(p.Name)] {
			found = append(found, p.Name+" changed (is not set)")
		}
	}
	return found
}

func lookUp(parts []cache.Part, name string) (string, bool) {
	for _, p := range parts {
		if p.Name == name {
			return p.Value, true
		}
	}
	return "", false
}

// moved is for a base image whose tag names another one now.
func moved(old, now string) string {
	oldRef, oldDigest, _ := strings.Cut(old, "@")
	ref, digest, _ := strings.Cut(now, "@")
	name := ref
	if r, err := oci.ParseReference(ref); err == nil {
		name = r.Familiar()
	}
	if oldRef != ref {
		return "the base is " + name + " now"
	}
	return fmt.Sprintf("base %s moved from %s to %s", name, short(oldDigest), short(digest))
}

func short(digest string) string {
	const n = len("sha256:") + 12
	if len(digest) > n {
		return digest[:n] + "…"
	}
	return digest
}

// files names what changed of the files of a COPY or a mount.
func (c Records) files(p solver.Part, old oci.Digest, had bool) string {
	what := "the files of a mount"
	if strings.HasPrefix(p.Name, partFiles) {
		what = "what it copies"
	}
	if !had {
		return what + " changed"
	}
	d := c.compare(old, oci.Digest(p.Value))
	switch {
	case d.count == 0:
		return what + " changed"
	case d.count > 1:
		return fmt.Sprintf("%s and %d more", d.first, d.count-1)
	}
	return d.first
}
