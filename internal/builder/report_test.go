package builder

import (
	"errors"
	"testing"
)

func TestBuildError(t *testing.T) {
	tests := []struct {
		err  BuildError
		want string
	}{
		{BuildError{Name: "[2/2] RUN make", Position: "Dockerfile:7", Err: errors.New("exit code 2")}, "Dockerfile:7: [2/2] RUN make: exit code 2"},
		{BuildError{Name: "[internal] download http://x/y", Position: "Dockerfile:7", Err: errors.New("download http://x/y: refused")}, "Dockerfile:7: [internal] download http://x/y: refused"},
		{BuildError{Name: "squash", Err: errors.New("no space")}, "squash: no space"},
		{BuildError{Position: "Dockerfile", Err: errors.New("empty")}, "Dockerfile: empty"},
		{BuildError{Err: errors.New("bare")}, "bare"},
	}
	for _, tt := range tests {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("Error() = %q, want %q", got, tt.want)
		}
	}
}
