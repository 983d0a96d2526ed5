// Command mkbase pushes stand-in base images to a registry on loopback:
//
//	mkbase node 127.0.0.1:5000/library/node:alpine [KIND REFERENCE]…
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/861fb494/build/internal/testbase"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkbase:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || len(args)%2 != 0 {
		return fmt.Errorf("want pairs of KIND and REFERENCE, as in: node 127.0.0.1:5000/library/node:alpine")
	}
	for i := 0; i < len(args); i += 2 {
		img, err := testbase.Make(args[i])
		if err != nil {
			return err
		}
		if err := testbase.Push(ctx, img, args[i+1]); err != nil {
			return err
		}
	}
	return nil
}
