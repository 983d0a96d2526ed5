package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/patternmatcher"
	mode "github.com/tonistiigi/dchapes-mode"

	"github.com/861fb494/build/llb"
)

// transfer is a COPY or an ADD.
type transfer struct {
	instructions.SourcesAndDest
	word      string // "COPY", "ADD"
	code      string
	fromName  string
	chown     string
	chmod     string
	link      bool
	parents   bool
	excludes  []string
	add       bool
	keepGit   *bool
	unpack    *bool
	checksum  string
	mode      string // chmod, checked
	dest      string
	inputs    []*llb.Node
	actions   []llb.Action
	treeInput int // which input the tree of the sources is; 0: none yet
}

func copying(c *instructions.CopyCommand) transfer {
	return transfer{
		SourcesAndDest: c.SourcesAndDest, word: "COPY", code: c.String(), fromName: c.From,
		chown: c.Chown, chmod: c.Chmod, link: c.Link, parents: c.Parents, excludes: c.ExcludePatterns,
	}
}

func addition(c *instructions.AddCommand) transfer {
	return transfer{
		SourcesAndDest: c.SourcesAndDest, word: "ADD", code: c.String(),
		chown: c.Chown, chmod: c.Chmod, link: c.Link, excludes: c.ExcludePatterns,
		add: true, keepGit: c.KeepGitDir, unpack: c.Unpack, checksum: c.Checksum,
	}
}

func (x *step) copy(s state, t transfer) (state, error) {
	var from *stage
	if len(x.from) > 0 {
		from = x.from[0]
		if err := x.available(from, t.fromName); err != nil {
			return s, err
		}
	}
	if err := t.check(); err != nil {
		return s, err
	}
	t.dest = destination(s.dir, t.DestPath)
	name := x.title(x.lex, s.env, t.code)
	meta := llb.Meta{Name: x.numbered(s, name), NoCache: x.stage.noCache}

	// With --chmod the files are put where they belong at once: the mode is to
	// reach what is there already.
	link := t.link && t.chmod == ""
	t.inputs = []*llb.Node{s.root}
	if link {
		t.inputs[0] = x.scratch()
	}
	for _, src := range t.SourcePaths {
		if err := x.copySource(&t, from, src); err != nil {
			return s, err
		}
	}
	for _, doc := range t.SourceContents {
		if err := x.copyDocument(&t, doc); err != nil {
			return s, err
		}
	}
	made := x.node(llb.File{Actions: t.actions}, meta, t.inputs...)
	if link {
		meta.Internal = true
		meta.Name = strings.Replace(meta.Name, name, "LINK "+name, 1)
		made = x.node(llb.Merge{}, meta, s.root, made)
	}
	s.root = made
	return s.commit(t.history()+" # buildkit", true, x.epoch), nil
}

// check reads --chmod and --checksum.
func (t *transfer) check() error {
	if t.chmod != "" {
		bad := fmt.Errorf("invalid chmod parameter: '%v'. it should be octal string and between 0 and 07777", t.chmod)
		if n, err := strconv.ParseUint(t.chmod, 8, 32); err == nil {
			if n > 0o7777 {
				return bad
			}
			t.mode = fmt.Sprintf("%04o", n)
		} else if _, err := mode.Parse(t.chmod); err != nil {
			if errors.Is(err, strconv.ErrSyntax) || errors.Is(err, strconv.ErrRange) {
				return bad
			}
			return fmt.Errorf("--chmod=%s: %w", t.chmod, err)
		} else {
			t.mode = t.chmod
		}
	}
	if t.checksum == "" {
		return nil
	}
	if len(t.SourcePaths) != 1 {
		return errors.New("checksum can't be specified for multiple sources")
	}
	if src := t.SourcePaths[0]; !isGit(src) && !isHTTP(src) {
		return errors.New("checksum requires HTTP(S) or Git sources")
	}
	return nil
}

// action is a Copy as all sources of the instruction have it in common.
func (t *transfer) action(input int, sources ...string) llb.Copy {
	return llb.Copy{
		Input: input, Sources: sources, Dest: t.dest,
		Owner: llb.Owner(t.chown), Mode: t.mode, Excludes: t.excludes,
	}
}

// input adds an input and returns its index.
func (t *transfer) input(n *llb.Node) int {
	t.inputs = append(t.inputs, n)
	return len(t.inputs) - 1
}

// copySource adds the action for one source.
func (x *step) copySource(t *transfer, from *stage, src string) error {
	git, ok, err := parseGit(src)
	switch {
	case ok && err != nil:
		return err
	case ok:
		return x.addGit(t, git)
	case isHTTP(src):
		return x.addURL(t, src)
	}
	keep := from != nil && from.state.local == ""
	if !keep {
		if err := checkRanges(src); err != nil {
			return err
		}
	}
	if from == nil {
		x.checkIgnored(t.word[:1]+strings.ToLower(t.word[1:]), src)
	}
	if t.treeInput == 0 {
		sel := llb.Select{Wildcards: true, Excludes: t.excludes, Parents: t.parents}
		for _, src := range t.SourcePaths {
			if _, ok, _ := parseGit(src); !ok && !isHTTP(src) {
				sel.Paths = append(sel.Paths, t.sourcePath(src))
			}
		}
		t.treeInput = t.input(x.input(from, sel))
	}
	a := t.action(t.treeInput, t.sourcePath(src))
	a.Wildcards, a.Parents = true, t.parents
	a.Keep = keep
	if a.Unpack = t.add; t.unpack != nil {
		a.Unpack = *t.unpack
	}
	// Sources in a row from one tree are one action.
	if n := len(t.actions); n > 0 {
		if last, ok := t.actions[n-1].(llb.Copy); ok && last.Input == a.Input {
			a.Sources = append(last.Sources[:len(last.Sources):len(last.Sources)], a.Sources...)
			t.actions = t.actions[:n-1]
		}
	}
	t.actions = append(t.actions, a)
	return nil
}

// checkRanges is an error for a source in a context with a range that runs
// backwards, as in "[b-a]". In a stage such a source matches nothing; but a context
// is sent to BuildKit by patterns that become regular expressions.
func checkRanges(src string) error {
	if !strings.Contains(src, "[") {
		return nil
	}
	p, err := patternmatcher.New([]string{src})
	if err == nil {
		_, err = p.MatchesOrParentMatches("x")
	}
	if err != nil {
		return fmt.Errorf("source %q: %w", src, err)
	}
	return nil
}

// sourcePath is a source as an absolute path of its tree. What leads out of the
// tree is cut off. With --parents the "/./" after which the path is kept stays.
func (t *transfer) sourcePath(src string) string {
	if t.parents {
		if base, rest, ok := strings.Cut(src, "/./"); ok {
			return strings.TrimSuffix(path.Join("/", base), "/") + "/." + path.Join("/", rest)
		}
	}
	return path.Join("/", src)
}

// copyDocument adds the action for an inline document.
func (x *step) copyDocument(t *transfer, doc instructions.SourceContent) error {
	name := path.Join("/", doc.Path)
	if path.Dir(name) != "/" {
		return fmt.Errorf("the name of an inline document has no directory: %q", doc.Path)
	}
	file := llb.Mkfile{Path: name, Data: []byte(doc.Data), Mode: "0644"}
	n := x.internal("preparing inline document", llb.File{Actions: []llb.Action{file}}, x.scratch())
	t.actions = append(t.actions, t.action(t.input(n), name))
	return nil
}

// destination is dest seen from dir, cleaned; a slash at the end, which makes
// it a directory, stays.
func destination(dir, dest string) string {
	isDir := dest == "" || dest == "." || strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.")
	if !path.IsAbs(dest) {
		dest = path.Join("/", dir, dest)
	}
	if dest = path.Clean(dest); isDir && dest != "/" {
		dest += "/"
	}
	return dest
}

// history is the instruction as the history has it.
func (t *transfer) history() string {
	words := []string{t.word}
	if t.parents {
		words = append(words, "--parents")
	}
	if t.chown != "" {
		words = append(words, "--chown="+t.chown)
	}
	if t.chmod != "" {
		words = append(words, "--chmod="+t.chmod)
	}
	words = append(words, t.SourcePaths...)
	for _, doc := range t.SourceContents {
		words = append(words, "<<"+doc.Path)
	}
	return strings.Join(append(words, t.DestPath), " ")
}
