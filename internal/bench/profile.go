package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/pprof/profile"
)

// profiles is where builds leave their CPU profiles.
func (b *bench) profiles() string { return filepath.Join(b.dir, "profiles") }

// mergeProfiles adds up the CPU profiles in dir, for the compiler: nothing of the
// machine that they are from is left in the file at path.
func mergeProfiles(dir, path string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var all []*profile.Profile
	for _, n := range names {
		p, err := readProfile(filepath.Join(dir, n.Name()))
		if err != nil {
			return err
		}
		if len(p.Sample) > 0 { // a build may take less time than there is between two
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return errors.New("no build ran for long enough")
	}
	sum, err := profile.Merge(all)
	if err != nil {
		return err
	}
	sum.TimeNanos, sum.DurationNanos = 0, 0
	for _, m := range sum.Mapping {
		m.File, m.BuildID = "build", ""
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(sum.Write(f), f.Close())
}

func readProfile(path string) (*profile.Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := profile.Parse(f)
	if err != nil {
		return nil, &fs.PathError{Op: "parse", Path: path, Err: err}
	}
	return p, nil
}
