package registry

import (
	"net/http"
	"net/url"
	"testing"
)

// What is for a registry alone goes nowhere else, whatever names it goes by.
func TestLocation(t *testing.T) {
	const asked = "https://registry.example/v2/x/blobs/uploads/"
	for _, tt := range []struct {
		location, want string // want "": refused
		own            bool
	}{
		{"/v2/x/1", "https://registry.example/v2/x/1", true},
		{"https://registry.example:443/v2/x/1", "https://registry.example:443/v2/x/1", true},
		{"https://Registry.Example/v2/x/1", "https://Registry.Example/v2/x/1", true},
		{"http://registry.example/v2/x/1", "https://registry.example/v2/x/1", true},
		{"http://registry.example:80/v2/x/1", "https://registry.example/v2/x/1", true},
		{"https://registry.example:8443/v2/x/1", "https://registry.example:8443/v2/x/1", false},
		{"https://storage.example/1", "https://storage.example/1", false},
		{"http://storage.example/1", "", false},
	} {
		h := &host{addr: "registry.example", schemes: []string{"https"}}
		req, err := http.NewRequest(http.MethodPost, asked, nil)
		if err != nil {
			t.Fatal(err)
		}
		u, err := h.location(&http.Response{Header: http.Header{"Location": {tt.location}}, Request: req})
		switch {
		case tt.want == "":
			if err == nil {
				t.Errorf("location %s: %s, want an error", tt.location, u)
			}
		case err != nil || u.String() != tt.want || h.is(u) != tt.own:
			t.Errorf("location %s: %s (%v), the registry's own: %v, want %s, %v", tt.location, u, err, h.is(u), tt.want, tt.own)
		}
	}
	plain, _ := url.Parse("http://registry.example/v2/")
	if (&host{addr: "registry.example", schemes: []string{"https"}}).is(plain) {
		t.Error("plain HTTP counts as a registry of HTTPS")
	}
}
