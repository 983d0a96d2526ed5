package stub

const machine = 183 // EM_AARCH64

// bounds returns the addresses of the code that programs have, and of what follows
// it.
func bounds() (from, to uintptr)
