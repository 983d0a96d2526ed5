package lockfile

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/861fb494/build/internal/oci"
)

var (
	a      = "sha256:" + strings.Repeat("a", 64)
	b      = "sha256:" + strings.Repeat("b", 64)
	commit = strings.Repeat("0123456789", 4)
)

const head = "build lock 1\n"

// sample has one of everything.
func sample() File {
	f := File{}
	for _, e := range []Entry{
		{Key: Key{Image, "docker.io/library/node:alpine", ""}, Digest: oci.Digest(a), Platforms: map[string]oci.Digest{"linux/arm/v7": oci.Digest(a), "linux/amd64": oci.Digest(b)}},
		{Key: Key{Image, "127.0.0.1:5000/app:1", ""}, Digest: oci.Digest(b), Platforms: map[string]oci.Digest{}},
		{Key: Key{URL, "https://example.com/x?y=1,2", ""}, Digest: oci.Digest(a)},
		{Key: Key{URL, "https://example.com/a b\"\u202e", ""}, Digest: oci.Digest(b)},
		{Key: Key{Git, "https://example.com/x.git", HEAD}, Commit: commit},
		{Key: Key{Git, "https://example.com/x.git", "v1"}, Commit: commit, Tag: strings.Repeat("f", 40)},
		{Key: Key{Git, "git@example.com:x.git", "a#\xff"}, Commit: strings.Repeat("e", 64)},
	} {
		f[e.Key] = e
	}
	return f
}

func text() string {
	return `# Written by 'build lock'; 'build --locked' builds from it.
build lock 1

image 127.0.0.1:5000/app:1 ` + b + `
image docker.io/library/node:alpine ` + a + `
  linux/amd64 ` + b + `
  linux/arm/v7 ` + a + `

url "https://example.com/a b\"\u202e" ` + b + `
url https://example.com/x?y=1,2 ` + a + `

git git@example.com:x.git "a#\xff" ` + strings.Repeat("e", 64) + `
git https://example.com/x.git HEAD ` + commit + `
git https://example.com/x.git v1 ` + commit + ` tag ` + strings.Repeat("f", 40) + "\n"
}

func TestFormat(t *testing.T) {
	for range 3 { // maps have no order
		if got := string(sample().Format()); got != text() {
			t.Fatalf("Format =\n%s\nwant\n%s", got, text())
		}
	}
	if got, want := string(File{}.Format()), text()[:strings.Index(text(), "\n\n")+1]; got != want {
		t.Errorf("Format of nothing = %q, want %q", got, want)
	}
}

func TestParse(t *testing.T) {
	one := File{Key{URL, "https://x/", ""}: {Key: Key{URL, "https://x/", ""}, Digest: oci.Digest(a)}}
	for _, tt := range []struct {
		name, data string
		want       File
	}{
		{"all", text(), sample()},
		{"CRLF", strings.ReplaceAll(text(), "\n", "\r\n"), sample()},
		{"no newline at the end", strings.TrimRight(text(), "\n"), sample()},
		{"comments", "#\n\n  # x\n" + head + "# y\nurl https://x/ " + a + "\n#z", one},
		{"spaces", head + "url  https://x/   " + a + "  \n", one},
		{"a tab above a platform", head + "image docker.io/library/a:b " + a + "\n\tlinux/amd64 " + b, File{
			Key{Image, "docker.io/library/a:b", ""}: {Key: Key{Image, "docker.io/library/a:b", ""}, Digest: oci.Digest(a), Platforms: map[string]oci.Digest{"linux/amd64": oci.Digest(b)}},
		}},
		{"nothing", head, File{}},
	} {
		if got, err := Parse([]byte(tt.data)); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: Parse = %v, %v, want %v", tt.name, got, err, tt.want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, tt := range []struct {
		name, data string
		line       int
		want       string
	}{
		{"empty", "", 0, `the line "build lock 1" is missing`},
		{"comments alone", "# x\n", 0, "is missing"},
		{"something else", "{\"lockfileVersion\": 3}\n", 1, "is not how a lock file begins"},
		{"no version word", "url https://x/ " + a, 1, "is not how a lock file begins"},
		{"byte order mark", "\ufeff" + head, 1, "is not how a lock file begins"},
		{"other version", "build lock 2\nwhatever\n", 1, "another version of the format"},
		{"version", "build lock 1.0\n", 1, "another version of the format"},
		{"version twice", head + head, 2, `"build" is no kind of entry`},
		{"kind", head + "http x " + a, 2, `"http" is no kind of entry`},
		{"merge conflict", head + "<<<<<<< HEAD\nurl https://x/ " + a + "\n", 2, `"<<<<<<<" is no kind of entry`},
		{"duplicate", head + "url https://x/ " + a + "\nurl https://x/ " + a + "\n", 3, "url https://x/ stands here again"},
		{"duplicate of another digest", head + "url https://x/ " + a + "\nurl https://x/ " + b + "\n", 3, "stands here again"},
		{"duplicate by quotes", head + "url https://x/ " + a + "\nurl \"https://x/\" " + a + "\n", 3, "stands here again"},
		{"too few fields", head + "image docker.io/library/a:b\n", 2, "want image NAME DIGEST"},
		{"too many", head + "url https://x/ " + a + " " + a + "\n", 2, "want url URL DIGEST"},
		{"short name", head + "image node " + a + "\n", 2, `want its full name and tag, as in "docker.io/library/node:latest"`},
		{"name with a digest", head + "image docker.io/library/a:b@" + a + " " + a + "\n", 2, `as in "docker.io/library/a:b"`},
		{"no name", head + "image UPPER/: " + a + "\n", 2, "invalid reference format"},
		{"empty name", head + "url \"\" " + a + "\n", 2, "the name is empty"},
		{"digest", head + "url https://x/ sha256:0\n", 2, `digest "sha256:0": want sha256:`},
		{"another algorithm", head + "url https://x/ sha512:" + strings.Repeat("a", 128) + "\n", 2, "want sha256:"},
		{"upper case", head + "url https://x/ sha256:" + strings.Repeat("A", 64) + "\n", 2, "want sha256:"},
		{"commit", head + "git https://x/ main abc\n", 2, `commit "abc": want 40 or 64`},
		{"empty ref", head + "git https://x/ \"\" " + commit + "\n", 2, "want HEAD for the default branch"},
		{"tag", head + "git https://x/ main " + commit + " object " + commit + "\n", 2, "want tag and its object's hash"},
		{"tag's object", head + "git https://x/ main " + commit + " tag x\n", 2, "want tag and its object's hash"},
		{"platform of nothing", head + "  linux/amd64 " + a + "\n", 2, "a platform belongs below an image"},
		{"platform of a URL", head + "url https://x/ " + a + "\n  linux/amd64 " + a + "\n", 3, "a platform belongs below an image"},
		{"platform twice", head + "image docker.io/library/a:b " + a + "\n  linux/amd64 " + a + "\n  linux/amd64 " + a + "\n", 4, "linux/amd64 stands here again"},
		{"platform's name", head + "image docker.io/library/a:b " + a + "\n  \"linux/a b\" " + a + "\n", 3, "want OS/ARCH[/VARIANT]"},
		{"platform's digest", head + "image docker.io/library/a:b " + a + "\n  linux/amd64 x\n", 3, `digest "x"`},
		{"platform's fields", head + "image docker.io/library/a:b " + a + "\n  linux/amd64\n", 3, "want PLATFORM DIGEST"},
		{"control characters", head + "url https://x/\x1b[2J " + a + "\n", 2, "want it in quotation marks"},
		{"NUL", head + "url https://x/\x00 " + a + "\n", 2, "want it in quotation marks"},
		{"not UTF-8", head + "url https://x/\xff " + a + "\n", 2, "want it in quotation marks"},
		{"a lone CR", head + "url https://x/ " + a + "\rurl https://y/ " + a + "\n", 2, "want it in quotation marks"},
		{"open quotes", head + "url \"https://x/ " + a + "\n", 2, "a quotation mark is missing"},
		{"glued quotes", head + "url \"https://x/\"" + a + "\n", 2, "want a space behind"},
		{"too large", head + strings.Repeat("#", MaxSize), 0, "it is larger than"},
	} {
		got, err := Parse([]byte(tt.data))
		var e *Error
		if !errors.As(err, &e) || e.Line != tt.line || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Parse = %v, %v (line %v), want line %d: %s", tt.name, got, err, e, tt.line, tt.want)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("%s: the error has %d bytes", tt.name, len(err.Error()))
		}
		if other := strings.Contains(tt.want, "another version"); errors.Is(err, ErrVersion) != other {
			t.Errorf("%s: errors.Is(%v, ErrVersion) = %v, want %v", tt.name, err, !other, other)
		}
	}
}

func TestKey(t *testing.T) {
	node := Key{Image, "docker.io/library/node:alpine", ""}
	latest := Key{Image, "docker.io/library/node:latest", ""}
	local := Key{Image, "127.0.0.1:5000/app:latest", ""}
	url := Key{URL, "https://example.com/x,y", ""}
	git := Key{Git, "https://example.com/x.git", "v1"}
	tip := Key{Git, "https://example.com/x.git", HEAD}
	for _, tt := range []struct {
		key  Key
		name string
		want bool
	}{
		{node, "node:alpine", true},
		{node, "docker.io/library/node:alpine", true},
		{node, "node", true},
		{node, "docker.io/library/node", true},
		{node, "node:latest", false},
		{node, "nod", false},
		{node, "node@" + a, false},
		{node, "", false},
		{latest, "node", true},
		{latest, "node:latest", true},
		{latest, "node:alpine", false},
		{local, "127.0.0.1:5000/app", true},
		{local, "app", false},
		{url, "https://example.com/x,y", true},
		{url, "https://example.com/x", false},
		{git, "https://example.com/x.git#v1", true},
		{git, "https://example.com/x.git", true},
		{git, "https://example.com/x.git#v2", false},
		{tip, "https://example.com/x.git", true},
		{tip, "https://example.com/x.git#HEAD", true},
	} {
		if got := tt.key.Is(tt.name); got != tt.want {
			t.Errorf("%q.Is(%q) = %v, want %v", tt.key, tt.name, got, tt.want)
		}
	}
	for key, want := range map[Key]string{node: "node:alpine", local: "127.0.0.1:5000/app:latest", url: url.Name, git: "https://example.com/x.git#v1", tip: tip.Name} {
		if got := key.String(); got != want {
			t.Errorf("%#v.String() = %q, want %q", key, got, want)
		}
	}
}

// FuzzParse looks for files that are read as something else once written.
func FuzzParse(f *testing.F) {
	f.Add([]byte(text()))
	f.Add([]byte(head + "image docker.io/library/a:b " + a + "\r\n\tlinux/amd64 " + b))
	f.Add([]byte(head + "git \"\\x00\" \"\\\"\" " + commit))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Parse(data)
		if err != nil {
			return
		}
		again, err := Parse(got.Format())
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("Parse(%q) = %v; written and read again %v, %v", data, got, again, err)
		}
		if !bytes.Equal(again.Format(), got.Format()) {
			t.Errorf("Format of %v differs", got)
		}
	})
}
