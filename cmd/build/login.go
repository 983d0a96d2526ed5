package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/861fb494/build/internal/registry"
)

// login is the flags of `build login`.
type login struct {
	user, password string
	stdin          bool
}

func newLoginCommand(g *globals) *cobra.Command {
	var l login
	c := &cobra.Command{
		Use:   "login [flags] [REGISTRY]",
		Short: "Log in to a registry",
		Long: `Log in to a registry: docker.io, or the one that is named.

The credentials are tried and then stored where docker login stores them: in the
credential helper that Docker's config.json names, else in config.json itself.`,
		Example: `  build login registry.example
  build login -u ann --password-stdin registry.example < token`,
		Args: arguments,
		RunE: func(c *cobra.Command, args []string) error {
			return l.run(c.Context(), g, strings.Join(args, ""), c.Flags().Changed("password"))
		},
	}
	f := c.Flags()
	f.StringVarP(&l.user, "username", "u", "", "user `name`")
	f.StringVarP(&l.password, "password", "p", "", "`password` or token; other users of this machine can see it")
	f.BoolVar(&l.stdin, "password-stdin", false, "read the password from standard input")
	c.MarkFlagsMutuallyExclusive("password", "password-stdin")
	return c
}

func (l *login) run(ctx context.Context, g *globals, arg string, hasPassword bool) error {
	host, err := registry.ParseHost(arg)
	if err != nil {
		return usagef("%w", err)
	}
	switch {
	case l.stdin:
		if l.user == "" {
			return usagef("--password-stdin needs --username")
		}
		if l.password, err = readPassword(g.stdin); err != nil {
			return err
		}
	case hasPassword:
		fmt.Fprintln(g.stderr, "build: warning: --password shows the password to other users of this machine; use --password-stdin")
	}
	if l.user == "" || l.password == "" && !l.stdin && !hasPassword {
		if err := l.prompt(ctx, g, host); err != nil {
			return err
		}
	}
	if l.user == "" || l.password == "" {
		return usagef("user name and password must not be empty")
	}
	config, err := g.registryConfig()
	if err != nil {
		return err
	}
	if err := registry.Check(ctx, registry.Options{Config: config}, host, l.user, l.password); err != nil {
		return err
	}
	store := registry.DefaultCredentials()
	helper, err := store.Store(ctx, host, l.user, l.password)
	if err != nil {
		return err
	}
	if helper == "" {
		fmt.Fprintf(g.stderr, "build: warning: the password is stored unencrypted in %s; a credential helper would keep it safe\n", store.Path)
	}
	_, err = fmt.Fprintf(g.stdout, "Logged in to %s\n", host)
	return err
}

// readPassword reads all of r but the end of the line, as Docker does.
func readPassword(r io.Reader) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r"), nil
}

// prompt asks on the terminal for what the flags leave open.
func (l *login) prompt(ctx context.Context, g *globals, host string) error {
	tty, ok := g.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(tty.Fd())) {
		return usagef("standard input is no terminal to ask for the password on; use --username and --password-stdin")
	}
	state, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return fmt.Errorf("ask for the password: %w", err)
	}
	fmt.Fprintf(g.stderr, "Log in to %s\n", host)
	done := make(chan error, 1)
	go func() {
		done <- l.ask(g.stderr, tty)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		// The read goes on until the program ends; the terminal must show what
		// is typed again.
		fmt.Fprintln(g.stderr)
		return errors.Join(context.Cause(ctx), term.Restore(int(tty.Fd()), state))
	}
}

func (l *login) ask(w io.Writer, tty *os.File) error {
	if l.user == "" {
		fmt.Fprint(w, "User name: ")
		line, err := bufio.NewReader(tty).ReadString('\n')
		if err != nil {
			return fmt.Errorf("read user name: %w", err)
		}
		if l.user = strings.TrimSpace(line); l.user == "" {
			return nil // run says what is wrong
		}
	}
	if l.password != "" {
		return nil
	}
	fmt.Fprint(w, "Password: ")
	password, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(w)
	if err != nil {
		return fmt.Errorf("read password: %w", err)
	}
	l.password = string(password)
	return nil
}
