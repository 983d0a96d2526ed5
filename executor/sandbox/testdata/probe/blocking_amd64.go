package main

import "syscall"

// blocking are calls that wait for something, or fork.
var blocking = []uintptr{syscall.SYS_FORK, syscall.SYS_VFORK, syscall.SYS_PAUSE, syscall.SYS_ALARM, syscall.SYS_ARCH_PRCTL, uretprobe}

const uretprobe = 335 // kills who is not in a probe
