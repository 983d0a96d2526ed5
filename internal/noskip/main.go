// Command noskip runs go test and prints what go test would. With CI=true in
// the environment it also fails if any test was skipped: there, a test that
// cannot run is a test that fails.
//
//	noskip [go test's flags] PACKAGE…
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

func main() {
	strict := os.Getenv("CI") == "true"
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "noskip:", err)
		os.Exit(1)
	}
	err = watch(out, os.Stdout, strict)
	if werr := cmd.Wait(); werr != nil {
		err = errors.Join(err, fmt.Errorf("go test: %w", werr))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "noskip:", err)
		os.Exit(1)
	}
}

// event is a line of `go test -json` (go doc test2json, go help buildjson).
type event struct {
	Action, Package, Test, Output string
}

// watch turns the events on r into go test's usual output on w. It fails on
// events that it cannot read and, if strict, on skipped tests.
func watch(r io.Reader, w io.Writer, strict bool) error {
	output := map[[2]string]string{} // of a test that has not ended
	skipped := 0
	d := json.NewDecoder(r)
	for {
		var e event
		if err := d.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			return fmt.Errorf("read go test's events: %w", err)
		}
		key := [2]string{e.Package, e.Test}
		switch {
		case e.Action == "output" && e.Test == "" && e.Output == "PASS\n":
			// go test leaves it out where it names the package next.
		case e.Action == "build-output", e.Action == "output" && e.Test == "":
			fmt.Fprint(w, e.Output)
		case e.Action == "output":
			output[key] += e.Output
		case e.Action == "skip" && e.Test != "":
			skipped++
			if strict {
				fmt.Fprint(w, output[key])
			}
			delete(output, key)
		case e.Action == "fail" && e.Test != "":
			fmt.Fprint(w, output[key])
			delete(output, key)
		case e.Action == "pass":
			delete(output, key)
		case e.Action == "fail":
			// A test that never ended: the program crashed or ran out of time.
			for k, text := range output {
				if k[0] == e.Package {
					fmt.Fprint(w, text)
					delete(output, k)
				}
			}
		}
	}
	switch {
	case skipped > 0 && strict:
		return fmt.Errorf("tests skipped: %d; none may be skipped here", skipped)
	case skipped > 0:
		fmt.Fprintf(w, "tests skipped: %d\n", skipped)
	}
	return nil
}
