package seccomp

import "testing"

func TestDefaultCompiles(t *testing.T) {
	p, err := Default([]string{"CAP_CHOWN"})
	if err != nil {
		t.Fatal(err)
	}
	prog, err := Compile(p)
	if err != nil || len(prog) < 500 {
		t.Fatalf("Compile(Default) = %d instructions, %v, want more than 500", len(prog), err)
	}
}
