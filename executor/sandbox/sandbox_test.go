package sandbox_test

import (
	"os"
	"testing"

	"github.com/861fb494/build/executor/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.Reexec()
	os.Exit(m.Run())
}
