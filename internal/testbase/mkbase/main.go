// Command mkbase serves the demo's base images from loopback:
//
//	mkbase -probe URL                   succeeds if a server answers there
//	mkbase -serve DIR KIND NAME [KIND NAME]…
//
// -serve starts a registry that keeps its data in DIR, pushes an image of each
// KIND (see testbase.Make) under NAME, such as library/node:alpine, prints the
// registry's address and serves until SIGINT or SIGTERM.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/861fb494/build/internal/testbase"
)

func main() {
	url := flag.String("probe", "", "succeed if a server answers at `URL`")
	dir := flag.String("serve", "", "run a registry with its data in `DIR`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case *url != "":
		err = probe(ctx, *url)
	case *dir != "":
		err = serve(ctx, *dir, flag.Args())
	default:
		err = errors.New("want -probe URL or -serve DIR KIND NAME")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkbase:", err)
		os.Exit(1)
	}
}

// probe waits five seconds at most for any answer over HTTP.
func probe(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

func serve(ctx context.Context, dir string, args []string) error {
	if len(args) == 0 || len(args)%2 != 0 {
		return errors.New("want pairs of KIND and NAME, as in: node library/node:alpine")
	}
	r, err := testbase.StartRegistry(dir)
	if err != nil {
		return err
	}
	defer r.Close()
	for i := 0; i < len(args); i += 2 {
		img, err := testbase.Make(args[i])
		if err != nil {
			return err
		}
		if err := testbase.Push(ctx, img, r.Addr+"/"+args[i+1]); err != nil {
			return err
		}
	}
	fmt.Println(r.Addr)
	<-ctx.Done()
	return nil
}
