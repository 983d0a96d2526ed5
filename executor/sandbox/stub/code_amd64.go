package stub

const machine = 62 // EM_X86_64

// bounds returns the addresses of the code that programs have, and of what follows
// it.
func bounds() (from, to uintptr)
