package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/861fb494/build/internal/progress/display"
)

// Exit codes. A container's own code, and 128 plus a signal's number, come
// besides.
const (
	exitOK      = 0
	exitFailure = 1 // the build, or whatever was asked for, failed
	exitUsage   = 2 // the command line makes no sense
)

// exitStatus is an error that only sets the exit code: nothing is printed. It
// passes a container's status on.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is an error in the command line.
type usageError struct {
	err     error
	command string // "build push"; empty where that is not known
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef is an error in the command line that a command finds by itself.
func usagef(format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...)}
}

// report prints err, once, and returns the exit code. caught is the signal
// that cancelled the command, or nil.
func report(w io.Writer, err error, caught os.Signal) int {
	var status exitStatus
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		fmt.Fprintf(w, "build: %s\n", display.Printable(err.Error()))
		if usage.command != "" {
			fmt.Fprintf(w, "See '%s --help'.\n", usage.command)
		}
		return exitUsage
	case caught != nil:
		// What stopped is the user's doing; an error that is more than the
		// cancellation is still told.
		if errors.Is(err, context.Canceled) {
			fmt.Fprintf(w, "build: stopped: %v\n", caught)
		} else {
			fmt.Fprintf(w, "build: %s\n", display.Printable(err.Error()))
		}
		if s, ok := caught.(syscall.Signal); ok {
			return 128 + int(s)
		}
	default:
		fmt.Fprintf(w, "build: %s\n", display.Printable(err.Error()))
	}
	return exitFailure
}

// again is how long after the first signal another one counts as the user's
// second. timeout(1) and terminals that signal a whole process group send one
// signal twice.
const again = 500 * time.Millisecond

// interruptible is a context that SIGINT, SIGTERM or the end of the terminal (SIGHUP,
// unless nohup(1) has it ignored) cancels; a second such signal ends the program at
// once. release ends the handling and returns the signal that came, or nil; it may be
// called again.
func interruptible(parent context.Context) (ctx context.Context, release func() os.Signal) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	stop := make(chan struct{})
	caught := make(chan os.Signal, 1)
	go func() {
		var first os.Signal
		defer func() { caught <- first }()
		select {
		case first = <-signals:
			cancel()
		case <-stop:
			return
		}
		since := time.Now()
		for {
			select {
			case s := <-signals:
				if time.Since(since) > again {
					os.Exit(128 + int(s.(syscall.Signal)))
				}
			case <-stop:
				return
			}
		}
	}()
	var last os.Signal
	released := false
	return ctx, func() os.Signal {
		if !released {
			released = true
			signal.Stop(signals)
			close(stop)
			last = <-caught
		}
		return last
	}
}
