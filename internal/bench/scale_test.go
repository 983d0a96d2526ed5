package main

import "testing"

func TestRunSteps(t *testing.T) {
	const want = `FROM b AS s0
RUN echo 0 >/step
RUN echo 1 >/step
FROM b AS s1
COPY --from=s0 /step /step
RUN echo 2 >/step
`
	if got := runSteps("b", 3, 2); got != want {
		t.Errorf("runSteps(b, 3, 2) = %s, want %s", got, want)
	}
}

func TestParseSizes(t *testing.T) {
	name, sizes, err := parseSizes("content=4,1,4")
	if err != nil || name != "content" || len(sizes) != 2 || sizes[0] != 1 {
		t.Errorf("parseSizes(content=4,1,4) = %q, %v, %v, want content and 1, 4", name, sizes, err)
	}
	for _, text := range []string{"content", "content=", "content=x", "content=-1"} {
		if _, sizes, err := parseSizes(text); err == nil {
			t.Errorf("parseSizes(%q) = %v, want an error", text, sizes)
		}
	}
}
