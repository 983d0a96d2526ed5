// Package solver evaluates an llb graph: each step once, hits first.
package solver

import (
	"context"
	"fmt"
	"time"

	"github.com/861fb494/build/internal/oci"
	"github.com/861fb494/build/llb"
)

// Key names the result of a step by the content of its inputs.
type Key struct {
	Digest oci.Digest
	// Place is equal for the same step of the next build: file, stage, ordinal,
	// platform. It finds the record to compare with on a miss.
	Place string
	// Parts are the ingredients of Digest, for people. Never a secret.
	Parts []Part
}

// Part is one ingredient of a Key: a name, and its digest or a short value.
type Part struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	// Info: another part has it in its digest already; this one is there so
	// that a difference can be named.
	Info bool `json:"info,omitempty"`
}

// Worker does the work of a step, for one build. R is whatever a step yields.
// Its methods are called concurrently, and end soon after their context does.
//
// Steps in flight are shared: one that another build waits for too goes on,
// with the Worker of the build that began it, when that build's Solve has
// returned because it failed or was stopped. Who closes what a Worker holds
// waits for its Run calls first, or has them fail with context.Canceled or
// any other error: the other builds then run the step with their own Workers.
type Worker[R any] interface {
	// Key is the step's key by the content of its inputs.
	Key(ctx context.Context, n *llb.Node, in []R) (Key, error)
	// Run does the step. Its context carries no deadline of the Solve's, and
	// ends when nobody waits for the step any more.
	Run(ctx context.Context, n *llb.Node, in []R) (R, error)
}

// Importer is a Worker that knows of further results, of caches which its build
// may use and others may not. They are asked for what the Solver's own cache
// does not have, and what they have is recorded in it.
type Importer[R any] interface {
	// Import returns the result under k, or any error where there is none.
	Import(ctx context.Context, k Key) (R, error)
}

// Chooser is a Worker whose build cannot use every result that is recorded.
type Chooser[R any] interface {
	// Refuse says why r is of no use as the result of n; nil: it is of use.
	Refuse(n *llb.Node, r R) error
}

// refuse asks w, if it is a Chooser. The error is a *Miss.
func refuse[R any](w Worker[R], n *llb.Node, r R) error {
	if c, ok := w.(Chooser[R]); ok {
		if err := c.Refuse(n, r); err != nil {
			return &Miss{Why: err.Error()}
		}
	}
	return nil
}

// Cache holds results across builds and processes. Its methods are called
// concurrently.
type Cache[R any] interface {
	// Get returns the result recorded under k, or a *Miss. Any other error is a
	// miss too, with the error for its reason. A k that is a node's own digest
	// has neither Place nor Parts.
	Get(ctx context.Context, k Key) (R, error)
	// Put records r under k, in place of what is there. Its error fails no build.
	Put(ctx context.Context, k Key, r R) error
	// Lock holds k against all others, of this process too, so that one of them
	// runs the step and the others find its result. It waits until ctx ends.
	Lock(ctx context.Context, k Key) (unlock func(), err error)
}

// Miss is the error of a Get that finds nothing.
type Miss struct {
	// Why says which part differs from the last record of that place, in one
	// line: "src/a.go changed", "never built here". It is empty of a key without a
	// place, if there just is no record.
	Why string
}

func (m *Miss) Error() string { return "not cached: " + m.Why }

// StepError is the failure of a step. Its text names the file and line.
type StepError struct {
	Node *llb.Node
	Meta llb.Meta
	Err  error
}

func (e *StepError) Error() string {
	if len(e.Meta.Positions) == 0 {
		return fmt.Sprintf("%s: %v", e.Meta.Name, e.Err)
	}
	return fmt.Sprintf("%s: %s: %v", e.Meta.Positions[0], e.Meta.Name, e.Err)
}

func (e *StepError) Unwrap() error { return e.Err }

// Observer is told what becomes of each step of a Solve. Calls may come
// concurrently; for one step they come in order, Started before Done.
type Observer interface {
	// Started: the step's inputs are done and its turn has come. A step found
	// by its own digest gets Started and Done at once. A step whose inputs
	// failed, or which nothing needs, gets no call.
	Started(n *llb.Node, at time.Time)
	// Running: the step was not cached, for the reason given, and begins to run.
	Running(n *llb.Node, why string)
	// Done: err is the step's own, not a *StepError; that of the context if the
	// Solve was stopped or another step failed.
	Done(n *llb.Node, cached bool, err error, at time.Time)
}
