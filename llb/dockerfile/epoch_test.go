package dockerfile_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/861fb494/build/llb"
	"github.com/861fb494/build/llb/dockerfile"
)

// TestEpoch asks whose date SOURCE_DATE_EPOCH is: Date gets "scheme ref".
func TestEpoch(t *testing.T) {
	const stages = "ARG V=1\nFROM scratch AS src\nARG V\nADD https://example.com/$V.tar /\nFROM scratch AS repo\nADD https://example.com/r.git#v1 /\n"
	for _, tt := range []struct {
		name  string
		epoch string
		text  string // before the last stage
		o     dockerfile.Options
		want  string // what Date is asked for; "" if it is not
		err   string
		none  bool // there is no epoch
	}{
		{name: "seconds", epoch: "7"},
		{name: "the context", epoch: "context", want: "local context"},
		{name: "a file", epoch: "src", text: stages, want: "http https://example.com/1.tar"},
		{name: "in any case, with a build argument", epoch: "SRC", text: stages, o: dockerfile.Options{BuildArgs: map[string]string{"V": "2"}}, want: "http https://example.com/2.tar"},
		{name: "a repository", epoch: "repo", text: stages, want: "git https://example.com/r.git"},
		{name: "a named context", epoch: "named", o: dockerfile.Options{Contexts: map[string]string{"named": "https://example.com/n.git"}}, want: "git https://example.com/n.git"},
		{name: "a directory", epoch: "named", o: dockerfile.Options{Contexts: map[string]string{"named": "../dir"}}, none: true},
		{name: "none", epoch: "", none: true},
		{name: "not known", epoch: "other", err: "invalid SOURCE_DATE_EPOCH: other"},
		{name: "with a base", epoch: "s", text: "FROM x AS s\nADD https://example.com/a /\n", err: "must use FROM scratch"},
		{name: "two", epoch: "s", text: "FROM scratch AS s\nADD https://example.com/a https://example.com/b /\n", err: "exactly one remote ADD"},
		{name: "twice", epoch: "s", text: "FROM scratch AS s\nADD https://example.com/a /\nADD https://example.com/b /\n", err: "exactly one remote ADD"},
		{name: "nothing", epoch: "s", text: "FROM scratch AS s\n", err: "exactly one remote ADD"},
		{name: "a local file", epoch: "s", text: "FROM scratch AS s\nADD a /\n", err: "must be a single HTTP(S) or Git ADD"},
		{name: "something else", epoch: "s", text: "FROM scratch AS s\nRUN x\n", err: "unsupported RUN instruction"},
		{name: "not to be had", epoch: "context", o: dockerfile.Options{Target: "fails"}, text: "FROM scratch AS fails\n", want: "local context", err: "SOURCE_DATE_EPOCH=context: broken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked, at := "", time.Unix(981173106, 0)
			o := tt.o
			o.Date = func(_ context.Context, s llb.Source) (*time.Time, error) {
				asked = s.Scheme + " " + s.Ref
				if o.Target == "fails" {
					return nil, errors.New("broken")
				}
				return &at, nil
			}
			args := map[string]string{"SOURCE_DATE_EPOCH": tt.epoch}
			for k, v := range tt.o.BuildArgs {
				args[k] = v
			}
			o.BuildArgs = args
			r, err := lower(tt.text+"FROM scratch\nARG SOURCE_DATE_EPOCH\nLABEL e=$SOURCE_DATE_EPOCH\n", &fakeBases{}, o)
			if asked != tt.want {
				t.Errorf("Lower with SOURCE_DATE_EPOCH=%s asks for the date of %q, want %q", tt.epoch, asked, tt.want)
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Lower with SOURCE_DATE_EPOCH=%s = %v, want an error with %q", tt.epoch, err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatalf("Lower with SOURCE_DATE_EPOCH=%s = %v", tt.epoch, err)
			}
			label := r.Image.Config.Labels["e"]
			switch {
			case tt.none && (r.Epoch != nil || label != ""):
				t.Errorf("Lower with SOURCE_DATE_EPOCH=%s: epoch %v, label %q, want none", tt.epoch, r.Epoch, label)
			case tt.want != "" && (r.Epoch == nil || !r.Epoch.Equal(at) || label != "981173106"):
				t.Errorf("Lower with SOURCE_DATE_EPOCH=%s: epoch %v, label %q, want %v", tt.epoch, r.Epoch, label, at)
			}
		})
	}
}

// TestDated lowers with no SOURCE_DATE_EPOCH from outside that is a date.
func TestDated(t *testing.T) {
	for _, tt := range []struct {
		name  string
		above string            // the first FROM
		arg   string            // in the stage
		args  map[string]string // build arguments
		epoch int64
		label string
	}{
		{"nothing sets it", "", "SOURCE_DATE_EPOCH", nil, 0, "0"},
		{"a build argument does", "", "SOURCE_DATE_EPOCH", map[string]string{"SOURCE_DATE_EPOCH": "7"}, 7, "7"},
		{"an ARG above the first FROM does", "ARG SOURCE_DATE_EPOCH=7\n", "SOURCE_DATE_EPOCH", nil, 7, "7"},
		{"a stage has a value of its own", "", "SOURCE_DATE_EPOCH=7", nil, 0, "7"},
		{"it is empty", "", "SOURCE_DATE_EPOCH", map[string]string{"SOURCE_DATE_EPOCH": ""}, 0, "0"},
		{"it names what has no date", "", "SOURCE_DATE_EPOCH", map[string]string{"SOURCE_DATE_EPOCH": "context"}, 0, "0"},
		{"no ARG sees it", "", "OTHER", nil, 0, ""},
	} {
		o := dockerfile.Options{Dated: true, BuildArgs: tt.args}
		r, err := lower(tt.above+"FROM scratch\nARG "+tt.arg+"\nLABEL e=$SOURCE_DATE_EPOCH\n", &fakeBases{}, o)
		if err != nil {
			t.Errorf("%s: Lower = %v", tt.name, err)
			continue
		}
		if label := r.Image.Config.Labels["e"]; r.Epoch == nil || r.Epoch.Unix() != tt.epoch || label != tt.label {
			t.Errorf("%s: epoch %v and label %q, want %d and %q", tt.name, r.Epoch, label, tt.epoch, tt.label)
		}
		for _, h := range r.Image.History {
			if h.Created == nil || h.Created.Unix() != tt.epoch {
				t.Errorf("%s: %s was created %v, want %d", tt.name, h.CreatedBy, h.Created, tt.epoch)
			}
		}
	}
}
