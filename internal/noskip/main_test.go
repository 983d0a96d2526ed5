package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestWatch(t *testing.T) {
	const (
		passed  = `{"Action":"output","Package":"p","Test":"A","Output":"chatter\n"}` + "\n" + `{"Action":"pass","Package":"p","Test":"A"}` + "\n"
		skipped = `{"Action":"output","Package":"p","Test":"B","Output":"needs root\n"}` + "\n" + `{"Action":"skip","Package":"p","Test":"B"}` + "\n"
		failed  = `{"Action":"output","Package":"p","Test":"C","Output":"want 2\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"C"}` + "\n"
		crashed = `{"Action":"output","Package":"p","Test":"D","Output":"panic: x\n"}` + "\n" + `{"Action":"fail","Package":"p"}` + "\n"
		ok      = `{"Action":"output","Package":"p","Output":"ok p\n"}` + "\n" + `{"Action":"pass","Package":"p"}` + "\n"
		noTests = `{"Action":"output","Package":"q","Output":"? q\n"}` + "\n" + `{"Action":"skip","Package":"q"}` + "\n"
		broken  = `{"Action":"build-output","ImportPath":"p","Output":"x.go:1: bad\n"}` + "\n"
	)
	for _, tt := range []struct {
		name   string
		events string
		strict bool
		want   string
		err    string // part of it; "": none
	}{
		{"passed", passed + ok, true, "ok p\n", ""},
		{"skipped", passed + skipped + ok, false, "ok p\ntests skipped: 1\n", ""},
		{"skipped where none may be", skipped + ok, true, "needs root\nok p\n", "tests skipped: 1"},
		{"package without tests", noTests, true, "? q\n", ""},
		{"failed", passed + failed, true, "want 2\n", ""},
		{"crashed", crashed, true, "panic: x\n", ""},
		{"does not compile", broken, true, "x.go:1: bad\n", ""},
		{"not JSON", "panic", true, "", "read go test's events"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var w bytes.Buffer
			err := watch(strings.NewReader(tt.events), &w, tt.strict)
			if w.String() != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("watch(%q, strict %v) prints %q, error %v, want %q, error %q", tt.events, tt.strict, w.String(), err, tt.want, tt.err)
			}
		})
	}
}
