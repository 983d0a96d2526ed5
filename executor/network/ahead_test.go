package network

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// endpoints waits until there are n devices of endpoints, and returns their names.
func endpoints(t *testing.T, n int) []string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		got := slices.DeleteFunc(devices(t), func(name string) bool { return !strings.HasPrefix(name, devicePrefix) })
		if len(got) == n {
			return got
		}
		if time.Now().After(end) {
			t.Fatalf("endpoints %q, want %d", got, n)
		}
	}
}

func TestWarm(t *testing.T) {
	n := networks(t, t.TempDir(), Options{})
	serve(t, serverNS, serverAddr+":80")
	n.Warm()
	n.Warm()
	device := endpoints(t, 1)[0]
	published := attach(t, n, "18080:80")
	if deviceName(published.Addr) == device {
		t.Error("an endpoint with ports is the one that was made before they were known")
	}
	e := attach(t, n)
	if got := deviceName(e.Addr); got != device {
		t.Errorf("Attach gives %s, want %s, which was there", got, device)
	}
	if got, err := ask(e.ns, serverAddr+":80"); err != nil || got != hostAddr {
		t.Errorf("the server saw %q, %v, want a client at %q", got, err, hostAddr)
	}
	if got := deviceName(attach(t, n).Addr); got == device {
		t.Errorf("two endpoints have %s", got)
	}

	// What nobody asks for goes, in a while or when n is closed.
	n.Warm()
	endpoints(t, 4)
	endpoints(t, 3)
	n.Warm() // networks looks
}
