package builder

import (
	"fmt"
	"strconv"
)

// asIndex reports whether the result is an index, which BUILDKIT_MULTI_PLATFORM
// can ask for though there be one image; n is the number of platforms.
func asIndex(arg string, n int) (bool, error) {
	if arg == "" {
		return n > 1, nil
	}
	index, err := strconv.ParseBool(arg)
	if err != nil {
		return false, fmt.Errorf("BUILDKIT_MULTI_PLATFORM=%s: want true or false", arg)
	}
	if !index && n > 1 {
		return false, fmt.Errorf("BUILDKIT_MULTI_PLATFORM=%s, but --platform names %d platforms", arg, n)
	}
	return index, nil
}

func hasKey(m map[string]string, key string) bool {
	_, ok := m[key]
	return ok
}
