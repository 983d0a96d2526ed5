// Package llb is the graph of a build: immutable nodes, each named by a digest
// of what it does and of what it does it to.
//
// The set of operations is closed: Source, Exec, File, Merge. The package does
// no I/O and knows nothing of Dockerfiles.
package llb

import (
	"fmt"
	"time"

	"github.com/861fb494/build/internal/oci"
)

// Op is one of Source, Exec, File and Merge. An Op is not changed after it has
// been given to New.
type Op interface{ op() }

// Node is one step: an operation and the nodes whose results it works on.
// What each input is for, the operation says by index.
type Node struct {
	Op     Op
	Inputs []*Node
	Digest oci.Digest // of the operation and the input's digests
}

// New makes a node and computes its digest, once.
func New(op Op, inputs ...*Node) *Node {
	for i, in := range inputs {
		if in == nil {
			panic(fmt.Sprintf("llb: input %d of %T is nil", i, op))
		}
	}
	return &Node{Op: op, Inputs: inputs, Digest: digestOf(op, inputs)}
}

// Graph is what a build asks for: the results of Targets.
type Graph struct {
	Targets []*Node
	// Meta tells of nodes what is not part of what they do. Nodes that are
	// equal share an entry.
	Meta map[oci.Digest]Meta
}

// Meta is what a node has beside its operation; it is in no digest and in no key.
type Meta struct {
	Name      string // for people: "[web 2/5] RUN npm ci"
	Positions []Position
	Stage     string // name or number of its stage
	Ordinal   int    // of the instruction in its stage, from 1
	Platform  string // "linux/amd64"
	NoCache   bool
	Timeout   time.Duration // of an Exec; 0: none
	ProxyEnv  []string      // "HTTP_PROXY=…": set in the process, not in the key
	Internal  bool          // not shown unless it fails
	// Variables are those that the instruction has the values of: in its words,
	// or in its process.
	Variables []Variable
}

// Variable is a variable as an instruction sees it.
type Variable struct {
	Name, Value string
	Arg         bool // set by ARG; else by ENV, or by the base image
}

// Position is a range of lines of a file, from 1, ends included.
type Position struct {
	File        string
	Line, Until int
}

// String is "Dockerfile:7".
func (p Position) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// Join puts m's entry for d into g. Positions of equal nodes are gathered; a
// node is NoCache if any of its uses is.
func (g *Graph) Join(d oci.Digest, m Meta) {
	if g.Meta == nil {
		g.Meta = map[oci.Digest]Meta{}
	}
	old, ok := g.Meta[d]
	if !ok {
		g.Meta[d] = m
		return
	}
	for _, p := range m.Positions {
		if !contains(old.Positions, p) {
			old.Positions = append(old.Positions[:len(old.Positions):len(old.Positions)], p)
		}
	}
	old.NoCache = old.NoCache || m.NoCache
	old.Internal = old.Internal && m.Internal
	g.Meta[d] = old
}

func contains(ps []Position, p Position) bool {
	for _, q := range ps {
		if p == q {
			return true
		}
	}
	return false
}

// Walk calls f once for each node that the targets need, inputs first.
func (g Graph) Walk(f func(*Node)) {
	seen := map[oci.Digest]bool{}
	var walk func(*Node)
	walk = func(n *Node) {
		if seen[n.Digest] {
			return
		}
		seen[n.Digest] = true
		for _, in := range n.Inputs {
			walk(in)
		}
		f(n)
	}
	for _, t := range g.Targets {
		walk(t)
	}
}

// Rewrite returns a graph in which each operation is replaced by what f makes
// of it; digests follow, and Meta moves along. f is called once a node, inputs
// first.
func (g Graph) Rewrite(f func(*Node) (Op, error)) (Graph, error) {
	out := Graph{Targets: make([]*Node, len(g.Targets)), Meta: map[oci.Digest]Meta{}}
	done := map[oci.Digest]*Node{}
	var failed error
	g.Walk(func(n *Node) {
		if failed != nil {
			return
		}
		op, err := f(n)
		if err != nil {
			failed = err
			return
		}
		inputs := make([]*Node, len(n.Inputs))
		for i, in := range n.Inputs {
			inputs[i] = done[in.Digest]
		}
		done[n.Digest] = New(op, inputs...)
		if m, ok := g.Meta[n.Digest]; ok {
			out.Join(done[n.Digest].Digest, m)
		}
	})
	if failed != nil {
		return Graph{}, failed
	}
	for i, t := range g.Targets {
		out.Targets[i] = done[t.Digest]
	}
	return out, nil
}
