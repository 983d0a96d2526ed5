package parser

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing"
)

// files is a Reader of files in memory; paths are relative to the includer's.
type files map[string]string

func (f files) read(from, name string) (string, []byte, error) {
	name = path.Join(path.Dir(from), name)
	data, ok := f[name]
	if !ok {
		return "", nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return name, []byte(data), nil
}

func TestInclude(t *testing.T) {
	tests := []struct {
		name, in string
		files    files
		want     string // stages, their instructions by file:line; a * is an ARG of a file's head
	}{
		{"instructions", "# build: include\nFROM a\nINCLUDE f\nRUN y\n", files{"f": "RUN x\n"}, "FROM Dockerfile:2 RUN f:1 RUN Dockerfile:4"},
		{"in the directory of the includer", "# build: include\nFROM a\nINCLUDE d/f\n", files{"d/f": "# build: include\nINCLUDE g\nRUN x\n", "d/g": "\nRUN y\n"},
			"FROM Dockerfile:2 RUN d/g:2 RUN d/f:3"},
		{"stages", "# build: include\nARG A\nINCLUDE f\nARG B\nFROM a\n", files{"f": "ARG C\nFROM c\nRUN x\n"},
			"*A Dockerfile:2 *C f:1 *B Dockerfile:4 FROM f:2 RUN f:3 FROM Dockerfile:5"},
		{"nothing but stages of others", "# build: include\nINCLUDE f\n", files{"f": "FROM c\n"}, "FROM f:1"},
		{"arguments stand for their text", "# build: include\nINCLUDE f\nFROM a\nINCLUDE f\n", files{"f": "ARG A=1\n"}, "*A f:1 FROM Dockerfile:3 ARG f:1"},
		{"stages that two files need come once", "# build: include\nINCLUDE f\nINCLUDE g\nFROM a\n",
			files{"f": "# build: include\nINCLUDE h\nFROM f\n", "g": "# build: include\nINCLUDE h\nFROM g\n", "h": "FROM h\n"},
			"FROM h:1 FROM f:3 FROM g:3 FROM Dockerfile:4"},
		{"as often as it says", "# build: include\nFROM a\nINCLUDE f\ninclude f\n", files{"f": "RUN x\n"}, "FROM Dockerfile:2 RUN f:1 RUN f:1"},
		{"quoted, continued, commented", "# build: include\nFROM a\nINCLUDE \"a b\" \\\n# c\n X=\"1 2\" Y=3\n", files{"a b": "ARG X Y\nRUN x\n"},
			"FROM Dockerfile:2 ARG a b:1 RUN a b:2"},
		{"byte order mark", "\xef\xbb\xbf# build: include\nFROM a\nINCLUDE f\n", files{"f": "\xef\xbb\xbfRUN x"}, "FROM Dockerfile:2 RUN f:1"},
		{"flags of the file's own", "# build: include\nFROM a\nINCLUDE f\n", files{"f": "# build: timeout\nRUN --timeout=1s x"}, "FROM Dockerfile:2 RUN f:2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := ParseIncluding("Dockerfile", []byte(tt.in), tt.files.read)
			if err != nil {
				t.Fatalf("ParseIncluding(%q) = %v", tt.in, err)
			}
			stages, globals, err := f.Instructions(nil)
			if err != nil {
				t.Fatalf("Instructions of %q = %v", tt.in, err)
			}
			var got []string
			at := func(what string, r []Range) {
				file, line, _ := f.Position(r)
				got = append(got, fmt.Sprintf("%s %s:%d", what, file, line))
			}
			for _, g := range globals {
				if g.Arg != nil {
					at("*"+g.Arg.Args[0].Key, g.Arg.Location())
				}
			}
			for _, s := range stages {
				at("FROM", s.Location)
				for _, i := range s.Instructions {
					at(i.Name(), i.Location())
				}
			}
			if got := strings.Join(got, " "); got != tt.want {
				t.Errorf("ParseIncluding(%q) = %v, want %v", tt.in, got, tt.want)
			}
		})
	}
}

func TestIncludeErrors(t *testing.T) {
	deep := files{}
	for i := range 20 {
		deep[fmt.Sprint("d", i)] = fmt.Sprintf("# build: include\nINCLUDE d%d\n", i+1)
	}
	const on = "# build: include\nFROM a\n"
	tests := []struct {
		name, in string
		files    files
		want     string
	}{
		{"not asked for", "FROM a\nINCLUDE f\n", nil, `Dockerfile:2: unknown instruction: INCLUDE (other builders do not have it; to use it, write the line "# build: include" above the first instruction)`},
		{"not asked for there", on + "INCLUDE f\n", files{"f": "INCLUDE g\n"}, `f:1: unknown instruction: INCLUDE (other builders do not have it; to use it, write the line "# build: include" above the first instruction)`},
		{"no path", on + "INCLUDE\n", nil, "Dockerfile:3: INCLUDE needs a path, and may have values after it: INCLUDE path [NAME=value ...]"},
		{"an empty path", on + "INCLUDE \"\"\n", nil, "Dockerfile:3: INCLUDE needs a path, and may have values after it: INCLUDE path [NAME=value ...]"},
		{"variable in the path", on + "INCLUDE $f\n", nil, "Dockerfile:3: INCLUDE $f: variables are not expanded in the path"},
		{"two paths", on + "INCLUDE f g\n", nil, "Dockerfile:3: INCLUDE f: g: want NAME=value"},
		{"flag", on + "INCLUDE --once f\n", nil, "Dockerfile:3: unknown flag: --once"},
		{"missing", on + "INCLUDE f\n", nil, "Dockerfile:3: INCLUDE f: f: file does not exist"},
		{"empty", on + "INCLUDE f\n", files{"f": "\n"}, "f: the file is empty"},
		{"only comments", on + "INCLUDE f\n", files{"f": "# x\n"}, "f:1: file with no instructions"},
		{"mistake there", on + "INCLUDE f\n", files{"f": "ENV a=b\nRUM x\n"}, "f:2: unknown instruction: RUM (did you mean RUN?)"},
		{"open document there", on + "INCLUDE f\n", files{"f": "ENV a=b\nRUN <<X\n"}, "f:2: unterminated heredoc"},
		{"other front end there", on + "INCLUDE f\n", files{"f": "# syntax=x/y\nRUN x\n"}, `f:1: the front end "x/y" is not supported: the Dockerfile language (docker/dockerfile) is built in, and no other is run`},
		{"stages in a stage", on + "INCLUDE f\n", files{"f": "FROM a\n"}, "f:1: FROM in a file that is included below a FROM; a file with stages is included above the first FROM"},
		{"instructions above", "# build: include\nINCLUDE f\nFROM a\n", files{"f": "RUN x\n"}, "f:1: RUN before the first FROM: a file without stages is included below a FROM"},
		{"RUN after another file's stages", "# build: include\nINCLUDE f\nRUN x\nFROM a\n", files{"f": "FROM b\n"}, "Dockerfile:3: RUN before the first FROM: only ARG may stand there"},
		{"itself", on + "INCLUDE f\n", files{"f": "# build: include\nINCLUDE f\n"}, "f:2: INCLUDE f: it includes itself: Dockerfile -> f -> f"},
		{"each other", on + "INCLUDE f\n", files{"f": "# build: include\nINCLUDE g\n", "g": "# build: include\nINCLUDE f\n"}, "g:2: INCLUDE f: it includes itself: Dockerfile -> f -> g -> f"},
		{"too deep", on + "INCLUDE d0\n", deep, "d15:2: INCLUDE d16: files include one another more than 16 deep"},
		{"too many", on + strings.Repeat("INCLUDE f\n", 257), files{"f": "RUN x\n"}, "Dockerfile:259: INCLUDE f: more than 256 files are included"},
		{"too large", on + strings.Repeat("INCLUDE f\n", 9), files{"f": "RUN x\n" + strings.Repeat("#"+strings.Repeat("x", 60000)+"\n", 35)}, "Dockerfile:10: INCLUDE f: the files included are larger than 16777216 bytes"},
		{"value for no ARG", on + "INCLUDE f X=1\n", files{"f": "ARG Y\nRUN x\n"}, "Dockerfile:3: INCLUDE f: it has no ARG X to take the value"},
		{"value for another file's ARG", on + "INCLUDE f X=1\n", files{"f": "# build: include\nRUN x\nINCLUDE g\n", "g": "ARG X\nRUN x\n"}, "Dockerfile:3: INCLUDE f: it has no ARG X to take the value"},
		{"values for arguments", on + "INCLUDE f X=1\n", files{"f": "ARG X\n"}, "Dockerfile:3: INCLUDE f: it holds nothing but ARGs, which count where it is included: they take no values here, but from an ARG below"},
		{"other escape", on + "INCLUDE f\n", files{"f": "# escape=`\nRUN x\n"}, "f: the escape character is '`' here and '\\\\' where it is included"},
		{"trigger", on + "INCLUDE f\n", files{"f": "# build: include\nONBUILD INCLUDE g\n"}, "f:2: INCLUDE isn't allowed as an ONBUILD trigger"},
		{"trigger, not asked for", "FROM a\nONBUILD INCLUDE g\n", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseIncluding("Dockerfile", []byte(tt.in), tt.files.read)
			if message(err) != tt.want {
				t.Errorf("ParseIncluding(%q) = %v, want %v", tt.in, err, tt.want)
			}
			var e *Error
			if err != nil && !errors.As(err, &e) {
				t.Errorf("ParseIncluding(%q) = %T, want *Error", tt.in, err)
			}
		})
	}
	if _, err := Parse("Dockerfile", []byte(on+"INCLUDE f\n")); message(err) != "Dockerfile:3: INCLUDE f: there are no files to include here" {
		t.Errorf("Parse = %v, want it to have no files", err)
	}
}

func TestIncludeExcerpt(t *testing.T) {
	_, err := ParseIncluding("Dockerfile", []byte("# build: include\nFROM a\nINCLUDE f\n"), files{"f": "RUN one\nRUM two\nRUN three\n"}.read)
	var e *Error
	want := "   1 |     RUN one\n   2 | >>> RUM two\n   3 |     RUN three\n"
	if !errors.As(err, &e) || e.Source != want {
		t.Errorf("ParseIncluding = %+v, want the excerpt %q", err, want)
	}
}
