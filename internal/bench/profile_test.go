package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
)

func TestMergeProfiles(t *testing.T) {
	dir := t.TempDir()
	into := filepath.Join(t.TempDir(), "sum")
	if err := mergeProfiles(dir, into); err == nil {
		t.Error("nothing to merge, and no error")
	}
	write := func(name string, values ...int64) {
		t.Helper()
		m := &profile.Mapping{ID: 1, File: "/somewhere/build", BuildID: "abc"}
		fn := &profile.Function{ID: 1, Name: "main.f"}
		loc := &profile.Location{ID: 1, Mapping: m, Line: []profile.Line{{Function: fn}}}
		p := &profile.Profile{
			SampleType: []*profile.ValueType{{Type: "cpu", Unit: "nanoseconds"}}, TimeNanos: 5, DurationNanos: 7,
			Mapping: []*profile.Mapping{m}, Function: []*profile.Function{fn}, Location: []*profile.Location{loc},
		}
		for _, v := range values {
			p.Sample = append(p.Sample, &profile.Sample{Location: []*profile.Location{loc}, Value: []int64{v}})
		}
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := p.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	write("a", 2)
	write("b", 3, 4)
	write("short")
	if err := mergeProfiles(dir, into); err != nil {
		t.Fatal(err)
	}
	sum, err := readProfile(into)
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, s := range sum.Sample {
		total += s.Value[0]
	}
	if total != 9 {
		t.Errorf("%d in all, want 9", total)
	}
	if text := sum.String(); strings.Contains(text, "somewhere") || strings.Contains(text, "abc") || sum.TimeNanos != 0 {
		t.Errorf("the sum tells of the machine:\n%s", text)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := mergeProfiles(dir, into); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a broken profile: %v", err)
	}
}
