package dockerfile

import (
	"reflect"
	"testing"

	"github.com/861fb494/build/llb"
)

func TestGitSource(t *testing.T) {
	tests := []struct {
		in   string
		ok   bool
		want llb.Source
		err  string
	}{
		{in: "dir/file"},
		{in: "./a.git"},
		{in: "github.com/o/r.git"},
		{in: "https://example.com/x"},
		{in: "ftp://example.com/x.git"},
		{in: "a b@c:d"},
		{"https://example.com/o/r.git", true, llb.Source{Ref: "https://example.com/o/r.git"}, ""},
		{"http://u:p@example.com/r.git#v1", true, llb.Source{Ref: "http://u:p@example.com/r.git", Git: llb.GitOptions{Ref: "v1"}}, ""},
		{"git://example.com/r#main:sub/../dir/", true, llb.Source{Ref: "git://example.com/r", Git: llb.GitOptions{Ref: "main", Subdir: "dir"}}, ""},
		{"ssh://git@example.com:22/r?tag=v1&subdir=d", true, llb.Source{Ref: "ssh://git@example.com:22/r", Git: llb.GitOptions{Ref: "refs/tags/v1", Subdir: "d"}}, ""},
		{"git@example.com:o/r.git?branch=b&keep-git-dir&submodules=false&checksum=abc", true, llb.Source{Ref: "git@example.com:o/r.git",
			Git: llb.GitOptions{Ref: "refs/heads/b", KeepDir: true, SkipSubmodules: true, Checksum: "abc"}}, ""},
		{"git://h/r?ref=a#b", true, llb.Source{}, `ref conflicts: "b" vs "a"`},
		{"git://h/r?tag=a&branch=b", true, llb.Source{}, "branch conflicts with tag"},
		{"git://h/r?ref=", true, llb.Source{}, `query "ref" has no value`},
		{"git://h/r?ref=a&ref=b", true, llb.Source{}, `query "ref" has multiple values`},
		{"git://h/r?keep-git-dir=x", true, llb.Source{}, `invalid keep-git-dir value: "x"`},
		{"git://h/r?what=x", true, llb.Source{}, `unexpected query "what"`},
	}
	for _, tt := range tests {
		got, ok, err := gitSource(tt.in)
		switch {
		case ok != tt.ok:
			t.Errorf("gitSource(%q) = %v, want %v", tt.in, ok, tt.ok)
		case tt.err != "":
			if err == nil || err.Error() != tt.err {
				t.Errorf("gitSource(%q) = %v, want %v", tt.in, err, tt.err)
			}
		case err != nil:
			t.Errorf("gitSource(%q) = %v", tt.in, err)
		case ok:
			tt.want.Scheme = llb.Git
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("gitSource(%q) = %+v, want %+v", tt.in, got, tt.want)
			}
		}
	}
}

func TestDestination(t *testing.T) {
	tests := []struct{ dir, dest, want string }{
		{"/w", "", "/w/"},
		{"/w", ".", "/w/"},
		{"/w", "a", "/w/a"},
		{"/w", "a/", "/w/a/"},
		{"/w", "a/.", "/w/a/"},
		{"/w", "../../x", "/x"},
		{"/w", "/", "/"},
		{"/w", "/a//b/../c/", "/a/c/"},
		{"/", "./", "/"},
	}
	for _, tt := range tests {
		if got := destination(tt.dir, tt.dest); got != tt.want {
			t.Errorf("destination(%q, %q) = %q, want %q", tt.dir, tt.dest, got, tt.want)
		}
	}
}

func TestJoinWorkdir(t *testing.T) {
	tests := []struct{ os, current, wd, config, dir string }{
		{"linux", "", "a", "/a", "/a"},
		{"linux", "/a", "b/", "/a/b", "/a/b"},
		{"linux", "/a", "/tail/", "/tail/", "/tail"},
		{"linux", "/a", "..", "/", "/"},
		{"linux", "a", "a", "/a/a", "/a/a"},
		{"windows", "", "/", `\`, "/"},
		{"windows", `\a`, `b\c`, `\a\b\c`, "/a/b/c"},
		{"windows", `\a`, `C:\d`, `\d`, "/d"},
	}
	for _, tt := range tests {
		config, dir := joinWorkdir(tt.os, tt.current, tt.wd)
		if config != tt.config || dir != tt.dir {
			t.Errorf("joinWorkdir(%s, %q, %q) = %q, %q, want %q, %q", tt.os, tt.current, tt.wd, config, dir, tt.config, tt.dir)
		}
	}
}

func TestEnv(t *testing.T) {
	e := env{}.set("A", "1").set("B", "2").set("A", "3")
	if want := (env{"B=2", "A=3"}); !reflect.DeepEqual(e, want) {
		t.Errorf("env = %q, want %q: what is set last stands last", e, want)
	}
	before := e.set("C", "4")
	_ = e.set("D", "5")
	if v, _ := before.Get("C"); v != "4" {
		t.Errorf("C = %q after another set, want 4", v)
	}
	if got := e.unset("B"); !reflect.DeepEqual(got, env{"A=3"}) {
		t.Errorf("unset(B) = %q, want A=3", got)
	}
}
