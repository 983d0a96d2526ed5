package main

import (
	"encoding/json"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/txtar"
)

// Case is one generated build. It holds values only, so that the shrinker can
// take parts away and that JSON can bring it back.
type Case struct {
	Seed    uint64
	Bases   []Base
	Context []Entry
	Ignore  []string // lines of .dockerignore
	Stages  []Stage
}

// Base is a base image. Below its Layers stands one that all bases share, with
// busybox and a few users.
type Base struct {
	Layers  [][]Entry
	Env     []string
	User    string
	Workdir string
	OnBuild []Instr
}

// Entry is a member of a base image's layer, of the context or of an archive.
type Entry struct {
	Path  string // relative, clean, except in archives
	Kind  Kind
	Mode  uint32 // permissions with the setuid, setgid and sticky bits
	UID   int
	GID   int
	Data  string  // of a file
	Link  string  // target of a symbolic link; the linked member's path of a hard link
	Time  int64   // seconds since 1970
	Cap   bool    // carries a file capability
	Inner []Entry // members of an archive
	Gzip  bool    // an archive is compressed
}

// equal compares all of it.
func (e Entry) equal(o Entry) bool {
	x, y := e, o
	x.Inner, y.Inner = nil, nil
	return reflect.DeepEqual(x, y) && slices.EqualFunc(e.Inner, o.Inner, Entry.equal)
}

// Kind is what an entry is.
type Kind string

const (
	File     Kind = "file"
	Dir      Kind = "dir"
	Symlink  Kind = "symlink"
	Hardlink Kind = "hardlink"
	Fifo     Kind = "fifo"
	Device   Kind = "device"   // the character device 1:3
	Whiteout Kind = "whiteout" // in layers
	Opaque   Kind = "opaque"   // in layers
	Archive  Kind = "archive"  // in contexts: a tar of Inner
)

// Stage is a build stage.
type Stage struct {
	From   string // see Ref
	Instrs []Instr
}

// name is what other stages call stage i.
func stageName(i int) string { return fmt.Sprintf("s%d", i) }

// Instr is an instruction. Which fields are used depends on Op.
type Instr struct {
	Op      string   // COPY, ADD, RUN, WORKDIR, USER, ENV, ARG, VOLUME, LABEL, CMD, ENTRYPOINT, ONBUILD
	Args    []string // sources, words
	Dest    string
	From    string // "": the context; else "base:N", "stage:N" or "number:N", a stage by its number
	Chown   string
	Chmod   string
	Link    bool
	Parents bool
	Exclude []string
	Inline  []Inline // heredocs of COPY
	Form    string   // of RUN: "shell", "exec" or "heredoc"
	Mounts  []Mount
	Trigger *Instr // of ONBUILD
}

// Inline is a file that stands in the Dockerfile.
type Inline struct{ Name, Data string }

// Mount is a RUN --mount.
type Mount struct {
	Type   string // bind, tmpfs, cache
	Target string
	From   string // as Instr.From
	Source string
	ID     string
	RW     bool
}

// deref splits a reference; kind is "" for the context and "scratch" for that.
func deref(ref string) (kind string, i int) {
	kind, n, _ := strings.Cut(ref, ":")
	_, _ = fmt.Sscanf(n, "%d", &i) // stays 0 where there is no number
	return kind, i
}

// image is the name of base i in Dockerfiles, given what stands before it.
type imageName func(i int) string

func (f imageName) ref(ref string) string {
	switch kind, i := deref(ref); kind {
	case "base":
		return f(i)
	case "stage":
		return stageName(i)
	case "number":
		return fmt.Sprint(i)
	default:
		return kind
	}
}

// dockerfile renders the case.
func (c *Case) dockerfile(name imageName) string {
	var b strings.Builder
	for i, s := range c.Stages {
		fmt.Fprintf(&b, "FROM %s AS %s\n", name.ref(s.From), stageName(i))
		for _, in := range s.Instrs {
			b.WriteString(in.render(name))
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func quoteWords(words []string) string {
	text, err := json.Marshal(words)
	if err != nil {
		panic(err) // strings can be marshalled
	}
	// JSON's \u003c and the like are not what a Dockerfile's reader expects.
	return strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(text))
}

// render is the instruction's text, heredocs included, without the last newline.
func (in Instr) render(name imageName) string {
	var b strings.Builder
	b.WriteString(in.Op)
	switch in.Op {
	case "COPY", "ADD":
		in.renderCopy(&b, name)
	case "RUN":
		in.renderRun(&b, name)
	case "ONBUILD":
		b.WriteString(" " + in.Trigger.render(name))
	case "ENV", "LABEL":
		fmt.Fprintf(&b, " %s=%q", in.Args[0], in.Args[1])
	case "ARG":
		fmt.Fprintf(&b, " %s=%s", in.Args[0], in.Args[1])
	case "CMD", "ENTRYPOINT", "VOLUME":
		b.WriteString(" " + quoteWords(in.Args))
	default:
		b.WriteString(" " + strings.Join(in.Args, " "))
	}
	return b.String()
}

func (in Instr) renderCopy(b *strings.Builder, name imageName) {
	if in.From != "" {
		fmt.Fprintf(b, " --from=%s", name.ref(in.From))
	}
	if in.Chown != "" {
		fmt.Fprintf(b, " --chown=%s", in.Chown)
	}
	if in.Chmod != "" {
		fmt.Fprintf(b, " --chmod=%s", in.Chmod)
	}
	if in.Link {
		b.WriteString(" --link")
	}
	if in.Parents {
		b.WriteString(" --parents")
	}
	for _, e := range in.Exclude {
		fmt.Fprintf(b, " --exclude=%s", e)
	}
	words := slices.Clone(in.Args)
	for _, f := range in.Inline {
		words = append(words, "<<"+f.Name)
	}
	words = append(words, in.Dest)
	if slices.ContainsFunc(words, func(s string) bool { return strings.ContainsAny(s, " \t") }) {
		b.WriteString(" " + quoteWords(words))
	} else {
		b.WriteString(" " + strings.Join(words, " "))
	}
	for _, f := range in.Inline {
		fmt.Fprintf(b, "\n%s%s", f.Data, f.Name)
	}
}

func (in Instr) renderRun(b *strings.Builder, name imageName) {
	for _, m := range in.Mounts {
		fmt.Fprintf(b, " --mount=type=%s,target=%s", m.Type, m.Target)
		if m.From != "" {
			fmt.Fprintf(b, ",from=%s", name.ref(m.From))
		}
		if m.Source != "" {
			fmt.Fprintf(b, ",source=%s", m.Source)
		}
		if m.ID != "" {
			fmt.Fprintf(b, ",id=%s", m.ID)
		}
		if m.RW {
			b.WriteString(",rw")
		}
	}
	switch in.Form {
	case "exec":
		b.WriteString(" " + quoteWords([]string{"/bin/busybox", "sh", "-c", strings.Join(in.Args, "; ")}))
	case "heredoc":
		b.WriteString(" <<EOF\n" + strings.Join(in.Args, "\n") + "\nEOF")
	default:
		b.WriteString(" " + strings.Join(in.Args, "; \\\n    "))
	}
}

// script is what RUN's shell gets to run.
func (in Instr) script() string {
	if in.Form == "heredoc" {
		return strings.Join(in.Args, "\n") + "\n"
	}
	return strings.Join(in.Args, "; ")
}

// text prints the case for people, and for -replay.
func (c *Case) text(comment string) []byte {
	a := txtar.Archive{Comment: []byte(comment)}
	add := func(name, data string) {
		if !strings.HasSuffix(data, "\n") {
			data += "\n"
		}
		a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(data)})
	}
	add("Dockerfile", c.dockerfile(func(i int) string { return fmt.Sprintf("base%d", i) }))
	for i, b := range c.Bases {
		var s strings.Builder
		for _, l := range b.Layers {
			s.WriteString("layer\n" + listing(l, "  "))
		}
		for _, line := range [][2]string{{"USER", b.User}, {"WORKDIR", b.Workdir}, {"ENV", strings.Join(b.Env, " ")}} {
			if line[1] != "" {
				s.WriteString(line[0] + " " + line[1] + "\n")
			}
		}
		for _, in := range b.OnBuild {
			s.WriteString("ONBUILD " + in.render(func(i int) string { return fmt.Sprintf("base%d", i) }) + "\n")
		}
		add(fmt.Sprintf("base%d", i), s.String())
	}
	add("context", listing(c.Context, ""))
	if len(c.Ignore) > 0 {
		add(".dockerignore", strings.Join(c.Ignore, "\n"))
	}
	data, err := json.Marshal(c)
	if err != nil {
		panic(err) // plain values can be marshalled
	}
	add("case.json", string(data))
	return txtar.Format(&a)
}

// parseCase reads what text printed; only the part for -replay counts.
func parseCase(data []byte) (*Case, error) {
	for _, f := range txtar.Parse(data).Files {
		if path.Base(f.Name) == "case.json" {
			c := &Case{}
			if err := json.Unmarshal(f.Data, c); err != nil {
				return nil, fmt.Errorf("read case.json: %w", err)
			}
			return c, nil
		}
	}
	return nil, fmt.Errorf("there is no case.json in it")
}

// listing is one line for each entry.
func listing(entries []Entry, indent string) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%s%-8s %04o %d:%d %q", indent, e.Kind, e.Mode, e.UID, e.GID, e.Path)
		switch {
		case e.Link != "":
			fmt.Fprintf(&b, " -> %q", e.Link)
		case e.Data != "" && len(e.Data) < 80:
			fmt.Fprintf(&b, " %q", e.Data)
		}
		if e.Cap {
			b.WriteString(" capability")
		}
		b.WriteByte('\n')
		b.WriteString(listing(e.Inner, indent+"  "))
	}
	return b.String()
}
