package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestReport(t *testing.T) {
	failed := errors.New("no such thing")
	stopped := fmt.Errorf("step 3: %w", context.Canceled)
	for _, tt := range []struct {
		name   string
		err    error
		caught os.Signal
		code   int
		want   string
	}{
		{"success", nil, nil, 0, ""},
		{"success though a signal came", nil, syscall.SIGINT, 0, ""},
		{"failure", failed, nil, 1, "build: no such thing\n"},
		{"status of a container", fmt.Errorf("run: %w", exitStatus(42)), nil, 42, ""},
		{"status of a container that a signal ended", exitStatus(143), syscall.SIGTERM, 143, ""},
		{"command line", usagef("odd %s", "flag"), nil, 2, "build: odd flag\n"},
		{"command line of a command", &usageError{failed, "build push"}, nil, 2, "build: no such thing\nSee 'build push --help'.\n"},
		{"Ctrl-C", stopped, syscall.SIGINT, 130, "build: stopped: interrupt\n"},
		{"SIGTERM", stopped, syscall.SIGTERM, 143, "build: stopped: terminated\n"},
		{"failure while stopping", failed, syscall.SIGINT, 130, "build: no such thing\n"},
		{"cancelled by nobody", stopped, nil, 1, "build: step 3: context canceled\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var w bytes.Buffer
			if code := report(&w, tt.err, tt.caught); code != tt.code || w.String() != tt.want {
				t.Errorf("report(%v, %v) = %d, prints %q, want %d, %q", tt.err, tt.caught, code, w.String(), tt.code, tt.want)
			}
		})
	}
}

func TestInterruptible(t *testing.T) {
	ctx, release := interruptible(t.Context())
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the context goes on after SIGTERM")
	}
	for range 2 {
		if s := release(); s != syscall.SIGTERM {
			t.Errorf("release() = %v, want SIGTERM", s)
		}
	}

	ctx, release = interruptible(t.Context())
	if s := release(); s != nil || ctx.Err() != nil {
		t.Errorf("release() without a signal = %v, context %v, want nil, nil", s, ctx.Err())
	}
}
