package testbase

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Registry is a running Debian docker-registry.
type Registry struct {
	Addr string // "127.0.0.1:41234"; plain HTTP, no login
	cmd  *exec.Cmd
}

// StartRegistry starts a registry that keeps everything in dir. It ends with
// Close, or when the calling process ends.
func StartRegistry(dir string) (*Registry, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q}
  delete: {enabled: true}
http: {addr: %q}
`, filepath.Join(dir, "data"), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	defer log.Close()
	r := &Registry{Addr: addr, cmd: exec.Command("docker-registry", "serve", config)}
	r.cmd.Stdout, r.cmd.Stderr = log, log
	r.cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start registry: %w; Debian has it in the package docker-registry", err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if res, err := http.Get("http://" + addr + "/v2/"); err == nil {
			res.Body.Close()
			return r, nil
		} else if time.Now().After(deadline) {
			r.Close()
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("start registry: %w\n%s", err, text)
		}
	}
}

// Close ends the registry; its data stays.
func (r *Registry) Close() {
	_ = r.cmd.Process.Kill() // it may have ended by itself
	_ = r.cmd.Wait()         // "signal: killed"
}

// freeAddr is an address on loopback that nobody listened on just now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}
