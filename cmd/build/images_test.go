package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/861fb494/build/cache/image"
	"github.com/861fb494/build/internal/oci"
)

// storeOf makes a state directory with an image whose layers are there, named
// names, and returns it and the image's ID.
func storeOf(t *testing.T, names ...string) (root string, id oci.Digest) {
	t.Helper()
	root = filepath.Join(t.TempDir(), "state")
	s, err := image.Open(filepath.Join(root, "images"))
	if err != nil {
		t.Fatal(err)
	}
	tar := make([]byte, 1024) // an empty one
	layer, err := s.Put(specs.MediaTypeImageLayer, tar)
	if err != nil {
		t.Fatal(err)
	}
	created := time.Now().Add(-3 * time.Hour)
	img := oci.Image{}
	img.Created, img.OS, img.Architecture = &created, "linux", "amd64"
	img.Config.Labels = map[string]string{"who": "me"}
	img.RootFS = specs.RootFS{Type: "layers", DiffIDs: []oci.Digest{layer.Digest}}
	img.History = []oci.History{
		{CreatedBy: "COPY a-file-with-a-long-name-indeed /and-a-long-destination", Created: &created},
		{CreatedBy: "LABEL who=me", EmptyLayer: true},
	}
	put := func(mediaType string, v any) oci.Descriptor {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Put(mediaType, data)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	m := oci.Manifest{MediaType: specs.MediaTypeImageManifest, Config: put(specs.MediaTypeImageConfig, img), Layers: []oci.Descriptor{layer}}
	m.SchemaVersion = 2
	d := put(m.MediaType, m)
	for _, n := range names {
		ref, err := oci.ParseReference(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Set(ref, d); err != nil {
			t.Fatal(err)
		}
	}
	return root, m.Config.Digest
}

// call runs a command line on root.
func call(root, line string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	args := append([]string{"--root", root}, strings.Split(line, " ")...)
	code = execute(args, strings.NewReader(""), &out, &errOut)
	return code, out.String(), errOut.String()
}

func TestImageCommands(t *testing.T) {
	root, id := storeOf(t, "app:1", "localhost:5000/team/app")
	whole, short := id.String(), id.Encoded()[:12]
	for _, tt := range []struct {
		line   string
		code   int
		stdout string // parts of what is printed, each on its own; "!" in front: not there
		stderr string
	}{
		{"images", 0, "REPOSITORY|localhost:5000/team/app|latest|app |" + short + "|3 hours ago|!DIGEST", ""},
		{"images app", 0, "app |!team", ""},
		{"images app:1", 0, "app |!team", ""},
		{"images app:2", 0, "REPOSITORY|!app", ""},
		{"images localhost:5000/*/app", 0, "team|!\napp ", ""},
		{"images -q", 0, short + "\n", ""},
		{"images -q --no-trunc", 0, whole + "\n", ""},
		{"images --digests", 0, "DIGEST|sha256:", ""},
		{"images --format json app", 0, `{"Repository":"app","Tag":"1"|"ID":"` + short, ""},
		{"images --format {{.Repository}}:{{.Tag}} app", 0, "app:1\n", ""},
		{"images --format {{.Nonsense}}", 1, "", "--format: "},
		{"images --format {{", 2, "", "--format: "},
		{"inspect app:1", 0, `"Id": "` + whole + `"|"who": "me"|"app:1"|"localhost:5000/team/app:latest"|"Os": "linux"`, ""},
		{"inspect " + short, 0, `"Id": "` + whole, ""},
		{"inspect -f {{.Config.Labels.who}} app:1", 0, "me\n", ""},
		{"inspect --raw app:1", 0, `{"schemaVersion":2`, ""},
		{"inspect --config app:1", 0, `"history":[`, ""},
		{"inspect --platform linux/arm64 app:1", 1, "[]", "not found"},
		{"inspect app:1 other", 1, `"Id"`, "other: not found"},
		{"history app:1", 0, "IMAGE|LABEL who=me|0B|1.02kB|COPY a-file-with|…|!destination", ""},
		{"history --no-trunc app:1", 0, whole + "|/and-a-long-destination", ""},
		{"history other", 1, "", "other: not found"},
		{"tag app:1 app:1@" + whole, 2, "", "no digest"},
		{"tag other x", 1, "", "other: not found"},
		{"tag app:1 x UPPER", 1, "", "UPPER"},
		{"tag " + short + " x y:2", 0, "", ""},
		{"images", 0, "x |y ", ""},
		{"rmi " + short, 1, "", "several names: app:1, localhost:5000/team/app:latest, x:latest, y:2"},
		{"rmi x nothing y:2", 1, "Untagged: x:latest|Untagged: y:2|!Deleted", "nothing: not found"},
		{"rmi -f nothing", 0, "", ""},
		{"push " + short, 2, "", "give a DESTINATION"},
		{"push other", 1, "", "other: not found"},
		{"save other", 1, "", "other: not found"},
		{"save --format zip app:1", 2, "", "want oci-dir, oci or docker"},
		{"load -i /nowhere", 1, "", "load /nowhere: "},
		{"pull UPPER", 1, "", "UPPER"},
		{"rmi -f " + whole, 0, "Untagged: app:1|Deleted: " + whole, ""},
		{"images", 0, "REPOSITORY|!app", ""},
	} {
		code, stdout, stderr := call(root, tt.line)
		if code != tt.code || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("build %s: exit code %d, want %d\nstderr %q, want %q in it", tt.line, code, tt.code, stderr, tt.stderr)
		}
		for part := range strings.SplitSeq(tt.stdout, "|") {
			part, absent := strings.CutPrefix(part, "!")
			if strings.Contains(stdout, part) == absent && part != "" {
				t.Errorf("build %s: stdout %q, want %q in it: %v", tt.line, stdout, part, !absent)
			}
		}
	}
}

func TestSaveAndLoad(t *testing.T) {
	root, id := storeOf(t, "app:1", "app:2")
	dir := t.TempDir()
	for _, to := range []string{"layout", "x.tar", "x.img --format oci", "x.docker --format docker"} {
		path := filepath.Join(dir, strings.Fields(to)[0])
		if code, _, stderr := call(root, "save -q app:1 app:2 -o "+filepath.Join(dir, to)); code != 0 {
			t.Errorf("build save -o %s: exit code %d: %s", to, code, stderr)
			continue
		}
		other := filepath.Join(t.TempDir(), "state")
		code, stdout, stderr := call(other, "load -i "+path)
		if want := "Loaded image: app:1\nLoaded image: app:2\n"; code != 0 || stdout != want {
			t.Errorf("build load of %s: exit code %d, stdout %q, want %q: %s", to, code, stdout, want, stderr)
		}
		if _, stdout, _ := call(other, "images -q --no-trunc"); stdout != id.String()+"\n" {
			t.Errorf("after build load of %s: images -q = %q, want %s", to, stdout, id)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "layout")); err != nil || !st.IsDir() {
		t.Errorf("build save -o layout made no directory: %v", err)
	}
	// Standard output gets the bytes of the file.
	want, err := os.ReadFile(filepath.Join(dir, "x.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if _, stdout, _ := call(root, "save app:1 app:2"); stdout != string(want) {
		t.Errorf("build save wrote %d bytes to standard output, others than the %d of x.tar", len(stdout), len(want))
	}
	// Nothing is left of the temporary files.
	list, err := os.ReadDir(filepath.Join(root, "tmp"))
	if err != nil || len(list) != 0 {
		t.Errorf("%d temporary files left: %v", len(list), err)
	}
}

// A damaged image hides no other, and can be removed.
func TestDamagedImage(t *testing.T) {
	root, id := storeOf(t, "app:1")
	if err := os.WriteFile(filepath.Join(root, "images", "blobs", "sha256", id.Encoded()), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, stdout, _ := call(root, "images"); code != 0 || !strings.Contains(stdout, "<damaged>") {
		t.Errorf("build images: exit code %d, stdout %q, want <damaged> in it", code, stdout)
	}
	if code, _, stderr := call(root, "inspect app:1"); code != 1 || !strings.Contains(stderr, id.String()) {
		t.Errorf("build inspect: exit code %d, stderr %q, want 1 and the blob's digest", code, stderr)
	}
	if code, _, stderr := call(root, "rmi app:1"); code != 0 {
		t.Errorf("build rmi: exit code %d: %s", code, stderr)
	}
}
