package main

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		name string
		args string
		want string
		rest string
	}{
		{"nothing", "", "build", ""},
		{"context", ".", "build", "."},
		{"the word", "build .", "build", "."},
		{"the word twice", "build build", "build", "build"},
		{"command", "version --short", "version", "version --short"},
		{"directory named as a command", "./version", "build", "./version"},
		{"after the dashes", "-- version", "build", "-- version"},
		{"value of a build option", "-t version .", "build", "-t version ."},
		{"long build option first", "--tag version .", "build", "--tag version ."},
		{"global option with value", "--root version version", "version", "version --root version"},
		{"global option with equals", "--root=x version", "version", "version --root=x"},
		{"global switch", "--debug version --json", "version", "version --debug --json"},
		{"help", "help", "build", "--help"},
		{"help of a command", "help version", "version", "version --help"},
		{"version option", "--version", "version", "version"},
		{"stdin", "-", "build", "-"},
		{"completion", "__complete v", "__complete", "__complete v"},
		{"global option without its value", "--root", "build", "--root"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name, rest := split(strings.Fields(tt.args))
			if name != tt.want || !reflect.DeepEqual(rest, append([]string{}, strings.Fields(tt.rest)...)) {
				t.Errorf("split(%q) = %q, %q, want %q, %q", tt.args, name, rest, tt.want, tt.rest)
			}
		})
	}
}

func TestExecute(t *testing.T) {
	for _, tt := range []struct {
		name   string
		args   string
		code   int
		stdout string // both are parts of what is printed
		stderr string
	}{
		{"help lists the commands", "--help", 0, "\n  version      Print the version\n", ""},
		{"help of a command", "help version", 0, "build version [flags]", ""},
		{"version", "version", 0, "build ", ""},
		{"version as JSON", "version --json", 0, `"go": "go1`, ""},
		{"no context", "", 2, "", "needs one CONTEXT"},
		{"a build's option before a command", "--progress plain explain .", 2, "", "for the command explain write it before these flags: build explain [flags]"},
		{"unknown option", "version --what", 2, "", "build: unknown flag: --what\nSee 'build version --help'.\n"},
		{"unknown option of build", "--what .", 2, "", "See 'build --help'."},
		{"misspelt option", "--taget x .", 2, "", "build: unknown flag: --taget (did you mean --target?)\nSee 'build --help'.\n"},
		{"unknown letter", "-x .", 2, "", "build: unknown shorthand flag: 'x' in -x\nSee 'build --help'.\n"},
		{"misspelt global option", "version --rooot x", 2, "", "(did you mean --root?)"},
		{"misspelt option of run", "run --nmae x y", 125, "", "unknown flag: --nmae (did you mean --name?)"},
		{"misspelt command", "iamges", 1, "", "build: build context: stat iamges: no such file or directory (did you mean 'build images'?)\n"},
		{"misspelt command with arguments", "pusch a b", 2, "", "(did you mean 'build push'?)\nSee 'build --help'.\n"},
		{"a directory that is not there", "frontend", 1, "", "stat frontend: no such file or directory\n"},
		{"too many arguments", "version x", 2, "", "build: "},
		{"help of no command", "help nosuch", 2, "", "build: there is no command \"nosuch\"; 'build --help' lists them\nSee 'build --help'.\n"},
		{"too many arguments", "push a b c", 2, "", "build: push takes IMAGE [DESTINATION]; given: [\"a\" \"b\" \"c\"]\nSee 'build push --help'.\n"},
		{"too few arguments", "tag a", 2, "", "build: tag needs IMAGE NAME...; given: [\"a\"]\n"},
		{"arguments where there are none", "ps a", 2, "", "build: ps takes no arguments, only flags: [\"a\"]\n"},
		{"options that exclude each other", "version --json --short", 2, "", "See 'build version --help'."},
		{"completion of commands", "__complete vers", 0, "version\tPrint the version\n", ""},
		{"completion script", "completion bash", 0, "__start_build", ""},
		{"completion of no shell", "completion tcsh", 2, "", `"tcsh"`},
		{"profile that cannot be written", "--cpuprofile /nowhere/x version", 1, "", "build: --cpuprofile: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			code := execute(strings.Fields(tt.args), strings.NewReader(""), &out, &errOut)
			if code != tt.code || !strings.Contains(out.String(), tt.stdout) || !strings.Contains(errOut.String(), tt.stderr) {
				t.Errorf("build %s: exit code %d, want %d\nstdout %q, want %q in it\nstderr %q, want %q in it",
					tt.args, code, tt.code, out.String(), tt.stdout, errOut.String(), tt.stderr)
			}
		})
	}
}
