package network

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// iptables changes the rules of the test's namespace.
func iptables(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("iptables-nft"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("needs iptables-nft, of Debian's package iptables")
	}
	out, err := exec.Command("iptables-nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("iptables %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestFirewall(t *testing.T) {
	needRoot(t)
	serve(t, serverNS, serverAddr+":80")
	tests := []struct {
		name  string
		setup [][]string
		chain string
	}{
		{"docker", [][]string{{"-P", "FORWARD", "DROP"}, {"-N", "DOCKER-USER"}, {"-A", "FORWARD", "-j", "DOCKER-USER"}, {"-A", "DOCKER-USER", "-j", "RETURN"}}, "DOCKER-USER"},
		{"ufw", [][]string{{"-P", "FORWARD", "DROP"}}, "FORWARD"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Cleanup(func() {
				iptables(t, "-P", "FORWARD", "ACCEPT")
				iptables(t, "-F")
				iptables(t, "-X")
			})
			for _, args := range tt.setup {
				iptables(t, args...)
			}
			before := iptables(t, "-S")
			n := New(t.TempDir(), Options{})
			e := attach(t, n, "8080:80")
			serve(t, e.ns, ":80")
			if _, err := ask(e.ns, serverAddr+":80"); err != nil {
				t.Errorf("outbound: %v", err)
			}
			if _, err := ask(serverNS, hostAddr+":8080"); err != nil {
				t.Errorf("published port: %v", err)
			}
			rules := iptables(t, "-S")
			for _, want := range []string{"-A " + tt.chain + " -i build0", "-A " + tt.chain + " -o build0"} {
				if !strings.Contains(rules, want) {
					t.Errorf("iptables -S lacks %q:\n%s", want, rules)
				}
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
			if err := n.Close(); err != nil {
				t.Error(err)
			}
			if after := iptables(t, "-S"); after != before {
				t.Errorf("iptables -S after Close:\n%s\nwant as before:\n%s", after, before)
			}
		})
	}
}
