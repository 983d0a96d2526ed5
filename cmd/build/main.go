// Command build turns a Dockerfile into an OCI image without a daemon, and
// runs or pushes the result.
package main

import (
	"os"

	"github.com/861fb494/build/executor/sandbox"
	_ "github.com/861fb494/build/internal/hugepage" // the heap's first pages in one
)

func main() {
	sandbox.Reexec() // does not return in a process that is to become a step's
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
