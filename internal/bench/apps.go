package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The applications of w8g and w8n. Their modules and packages come from this
// machine's caches, or once from where `go` and `npm` are told to look, and are
// served from here, so that no network outside is measured.
//
//go:embed apps
var apps embed.FS

// npmRegistry is where apps/node/package-lock.json has its packages.
const npmRegistry = "https://registry.npmjs.org/"

// mirror serves Go modules and npm packages to steps.
type mirror struct {
	url    string // "http://192.0.2.7:41234"
	server *http.Server
	done   chan error
}

// mirror starts the server, or returns the one that runs.
func (b *bench) mirror() (*mirror, error) {
	if b.served != nil {
		return b.served, nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort(ownAddress(), "0"))
	if err != nil {
		return nil, fmt.Errorf("serve packages: %w", err)
	}
	mux := http.NewServeMux()
	modules := filepath.Join(b.dir, "modules", "cache", "download")
	mux.Handle("GET /go/", http.StripPrefix("/go/", http.FileServer(http.Dir(modules))))
	packages, err := lockedPackages()
	if err != nil {
		return nil, err
	}
	mux.HandleFunc("GET /npm/{path...}", func(w http.ResponseWriter, r *http.Request) {
		file, ok := packages[r.PathValue("path")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeFile(w, r, filepath.Join(b.dir, "npm", "_cacache", "content-v2", file))
	})
	b.served = &mirror{url: "http://" + l.Addr().String(), server: &http.Server{Handler: mux}, done: make(chan error, 1)}
	go func() { b.served.done <- b.served.server.Serve(l) }()
	return b.served, nil
}

func (m *mirror) close() error {
	err := m.server.Close()
	if served := <-m.done; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// ownAddress is one of this machine's that steps reach in networks of their own
// too: the one that would speak to the world, or loopback where none would.
func ownAddress() string {
	conn, err := net.Dial("udp", "192.0.2.1:9") // sends nothing
	if err != nil {
		return "127.0.0.1"
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// lockedPackages says for each path below npmRegistry which file of npm's cache
// has it; the cache names files by their SHA-512.
func lockedPackages() (map[string]string, error) {
	text, err := apps.ReadFile("apps/node/package-lock.json")
	if err != nil {
		return nil, err
	}
	var lock struct {
		Packages map[string]struct{ Resolved, Integrity string }
	}
	if err := json.Unmarshal(text, &lock); err != nil {
		return nil, fmt.Errorf("package-lock.json: %w", err)
	}
	files := map[string]string{}
	for name, p := range lock.Packages {
		if name == "" {
			continue
		}
		path, ok := strings.CutPrefix(p.Resolved, npmRegistry)
		sum, sha512 := strings.CutPrefix(p.Integrity, "sha512-")
		raw, err := base64.StdEncoding.DecodeString(sum)
		if !ok || !sha512 || err != nil || len(raw) < 3 {
			return nil, fmt.Errorf("package-lock.json: %s is at %q with integrity %q", name, p.Resolved, p.Integrity)
		}
		h := hex.EncodeToString(raw)
		files[path] = filepath.Join("sha512", h[:2], h[2:4], h[4:])
	}
	return files, nil
}

// nodeServer is the program of the Node application.
const nodeServer = "const e=require('express');const a=e();a.get('/',(q,r)=>r.send('v0'));a.listen(3000);\n"

// nodeApp writes w8n's context.
func (b *bench) nodeApp(ctx context.Context, dir string, _ int) error {
	m, err := b.mirror()
	if err != nil {
		return err
	}
	if err := copyApp("apps/node", dir); err != nil {
		return err
	}
	cache := filepath.Join(b.dir, "npm")
	if _, err := os.Stat(cache); err != nil {
		// With this machine's own packages; what they bring is not looked at.
		cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--cache", cache)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("npm ci: %w\n%s", err, out)
		}
		if err := os.RemoveAll(filepath.Join(dir, "node_modules")); err != nil {
			return err
		}
	}
	lock := filepath.Join(dir, "package-lock.json")
	text, err := os.ReadFile(lock)
	if err != nil {
		return err
	}
	if err := os.WriteFile(lock, bytes.ReplaceAll(text, []byte(npmRegistry), []byte(m.url+"/npm/")), 0o644); err != nil {
		return err
	}
	if err := write(dir, "server.js", nodeServer); err != nil {
		return err
	}
	for i := range 200 {
		if err := write(dir, fmt.Sprintf("lib/m%d.js", i), strings.Repeat(fmt.Sprintf("module.exports=%d;\n", i), 20)); err != nil {
			return err
		}
	}
	return write(dir, ".dockerignore", "node_modules\n")
}

const npmCommand = "npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier"

func nodeDockerfile(base, serial string, _ int) string {
	return fmt.Sprintf(`FROM %s
ENV SERIAL=%s
WORKDIR /app
COPY package*.json ./
RUN %s
COPY . .
ENV NODE_ENV=production
EXPOSE 3000
CMD ["node","server.js"]
`, base, serial, npmCommand)
}

// goApp writes w8g's context.
func (b *bench) goApp(ctx context.Context, dir string, _ int) error {
	m, err := b.mirror()
	if err != nil {
		return err
	}
	if err := copyApp("apps/go", dir); err != nil {
		return err
	}
	cache := filepath.Join(b.dir, "modules")
	if _, err := os.Stat(cache); err != nil {
		out, err := exec.CommandContext(ctx, "go", "env", "GOMODCACHE", "GOPROXY").Output()
		if err != nil {
			return fmt.Errorf("go env: %w", err)
		}
		has, proxies, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		cmd := exec.CommandContext(ctx, "go", "mod", "download")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOMODCACHE="+cache, "GOPROXY=file://"+has+"/cache/download,"+proxies, "GOFLAGS=-modcacherw", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go mod download: %w\n%s", err, out)
		}
	}
	return write(dir, "goproxy", m.url+"/go\n")
}

const (
	goDownload = "GOPROXY=$(cat goproxy) go mod download"
	goBuild    = "CGO_ENABLED=0 GOFLAGS=-buildvcs=false go build"
)

// goDockerfile has the serial in an ENV too: builders take steps with other
// cache mounts for the same.
func goDockerfile(base, serial string, _ int) string {
	return fmt.Sprintf(`FROM %s AS build
ENV SERIAL=%[2]s
WORKDIR /src
COPY go.mod go.sum goproxy ./
RUN --mount=type=cache,id=mod-%[2]s,target=/go/pkg/mod %[3]s
COPY . .
RUN --mount=type=cache,id=mod-%[2]s,target=/go/pkg/mod --mount=type=cache,id=build-%[2]s,target=/root/.cache/go-build %[4]s -o /app .
FROM scratch
COPY --from=build /app /app
ENTRYPOINT ["/app"]
`, base, serial, goDownload, goBuild)
}

// copyApp writes an application's files, whose names may have ".txt" added: a
// go.mod would make its directory another module's.
func copyApp(from, dir string) error {
	entries, err := fs.ReadDir(apps, from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		text, err := apps.ReadFile(from + "/" + e.Name())
		if err != nil {
			return err
		}
		if err := write(dir, strings.TrimSuffix(e.Name(), ".txt"), string(text)); err != nil {
			return err
		}
	}
	return nil
}

// edit puts the serial between before and the quotation mark that follows it, in
// an application's source.
func edit(name, before string) func(dir, serial string) error {
	return func(dir, serial string) error {
		path := filepath.Join(dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		head, rest, ok := strings.Cut(string(text), before)
		end := strings.IndexAny(rest, `"'`)
		if !ok || end < 0 {
			return fmt.Errorf("%s has no %s", path, before)
		}
		return os.WriteFile(path, []byte(head+before+serial+rest[end:]), 0o644)
	}
}
