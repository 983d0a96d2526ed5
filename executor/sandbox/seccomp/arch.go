package seccomp

import (
	"maps"
	"strconv"
	"strings"
)

// parse reads a table of "name number" lines.
func parse(table string) map[string]uint32 {
	numbers := make(map[string]uint32, 512)
	for line := range strings.Lines(table) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(number, 10, 32); err == nil {
			numbers[name] = uint32(n)
		}
	}
	return numbers
}

// with returns the numbers and those of names that other tables spell
// otherwise.
func with(numbers, more map[string]uint32) map[string]uint32 {
	maps.Copy(numbers, more)
	return numbers
}
