// init is nothing but the processes of sandboxes: a static program, which the
// test itself is not when it is built with -race.
package main

import "github.com/861fb494/build/executor/sandbox"

func main() { sandbox.Reexec() }
