package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker for releases: -ldflags "-X main.version=1.2.3".
var version string

// versionInfo is what `build version --json` prints.
type versionInfo struct {
	Version  string `json:"version"`          // "1.2.3"; "dev" where the linker set none
	Commit   string `json:"commit,omitempty"` // the revision it was built from
	Time     string `json:"time,omitempty"`   // of the commit, RFC 3339
	Modified bool   `json:"modified"`         // the work tree differed from the commit
	Go       string `json:"go"`               // "go1.26.3"
	Platform string `json:"platform"`         // "linux/amd64"
}

// readVersion asks the binary itself what it was built from.
func readVersion() versionInfo {
	v := versionInfo{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if ok {
		if v.Version == "" && info.Main.Version != "(devel)" {
			v.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				v.Commit = s.Value
			case "vcs.time":
				v.Time = s.Value
			case "vcs.modified":
				v.Modified = s.Value == "true"
			}
		}
	}
	if v.Version == "" {
		v.Version = "dev"
	}
	return v
}

func newVersionCommand(g *globals) *cobra.Command {
	var short, asJSON bool
	c := &cobra.Command{
		Use:   "version [flags]",
		Short: "Print the version",
		Args:  arguments,
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			switch {
			case asJSON:
				e := json.NewEncoder(g.stdout)
				e.SetIndent("", "  ")
				return e.Encode(v)
			case short:
				_, err := fmt.Fprintln(g.stdout, v.Version)
				return err
			}
			line := "build " + v.Version
			if v.Commit != "" {
				line += ", commit " + v.Commit
				if v.Modified {
					line += " (modified)"
				}
			}
			_, err := fmt.Fprintf(g.stdout, "%s, %s, %s\n", line, v.Go, v.Platform)
			return err
		},
	}
	c.Flags().BoolVar(&short, "short", false, "the version alone")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.MarkFlagsMutuallyExclusive("short", "json")
	return c
}
