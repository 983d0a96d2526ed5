// Command build turns a Dockerfile into an OCI image without a daemon, and
// runs or pushes the result.
package main

import (
	"os"
)

func main() {
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
