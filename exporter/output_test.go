package exporter

import (
	"strings"
	"testing"
)

func TestParseOutput(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Output
		err  string
	}{
		{"out", Output{Type: TypeLocal, Dest: "out"}, ""},
		{"-", Output{Type: TypeTar, Dest: "-"}, ""},
		{"type=oci,dest=x.tar", Output{Type: TypeOCI, Dest: "x.tar"}, ""},
		{`type=docker,"dest=a,b.tar"`, Output{Type: TypeDocker, Dest: "a,b.tar"}, ""},
		{"type=image", Output{Type: TypeImage}, ""},
		{"type=docker", Output{Type: TypeImage}, ""},
		{"type=registry,name=r.example/x", Output{Type: TypeRegistry}, ""},
		{"", Output{}, "empty"},
		{"type=oci", Output{}, "dest is missing"},
		{"dest=x", Output{}, "type is missing"},
		{"type=oci,dest=x,foo", Output{}, `"foo" is not name=value`},
		{"type=squash,dest=x", Output{}, "not known: use image"},
		{"type=oci,dest=x,color=red", Output{}, "color is not known"},
		{"type=oci,dest=x,tar=maybe", Output{}, "tar=maybe"},
		{"type=oci,dest=-,tar=false", Output{}, "standard output"},
		{"type=oci,dest=x,compression=lz4", Output{}, `"lz4" is not known`},
		{"type=oci,dest=x,compression=gzip,compression-level=12", Output{}, "gzip has 0 to 9"},
		{"type=oci,dest=x,oci-mediatypes=false", Output{}, "OCI's media types"},
		{"type=oci,dest=x,push=true", Output{}, "push is for"},
		{"type=image,dest=x", Output{}, "has no dest"},
		{"type=local,dest=x,compression=gzip", Output{}, "nothing but dest"},
		{"type=image,name=UPPER", Output{}, "name=UPPER"},
		{"type=oci,dest=x,rewrite-timestamp=true", Output{Type: TypeOCI, Dest: "x"}, ""},
		{"type=oci,dest=x,rewrite-timestamp=now", Output{}, "rewrite-timestamp=now"},
		{"type=tar,dest=x,rewrite-timestamp=true", Output{}, "nothing but dest"},
	} {
		got, err := ParseOutput(tt.in)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("ParseOutput(%q) = %v, want %q", tt.in, err, tt.err)
			}
			continue
		}
		if err != nil || got.Type != tt.want.Type || got.Dest != tt.want.Dest {
			t.Errorf("ParseOutput(%q) = %v, %v, want %v", tt.in, got, err, tt.want)
		}
		if want := strings.HasSuffix(tt.in, "rewrite-timestamp=true"); got.RewriteTimestamp() != want {
			t.Errorf("ParseOutput(%q).RewriteTimestamp() = %v, want %v", tt.in, !want, want)
		}
	}
}
