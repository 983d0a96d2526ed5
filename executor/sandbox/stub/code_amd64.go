package stub

const machine = 62 // EM_X86_64

// code0 is the code that programs have, and code1 what follows it. They are never
// called here.
func code0()
func code1()

// bounds returns the addresses of the two.
func bounds() (from, to uintptr)
