#include "textflag.h"

// The program goes through the table at 0x10000000: see headSize. It is copied out
// of this one, and so refers to nothing but registers.
TEXT code0<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ $0x10000000, R12
	LEAQ 16(R12), BX

call:
	MOVQ 0(BX), AX
	MOVQ 8(BX), DI
	MOVQ 16(BX), SI
	MOVQ 24(BX), DX
	MOVQ 32(BX), R10
	MOVQ 40(BX), R8
	MOVQ 48(BX), R9
	SYSCALL
	MOVQ AX, 0(BX)
	CMPQ AX, $-4095
	JCC  failed
	ADDQ $64, BX
	JMP  call

failed:
	NEGQ AX
	MOVQ 56(BX), CX
	MOVL $3, DX        // errors that may be tolerated

tolerate:
	MOVWLZX CX, SI
	CMPL SI, $0xffff
	JEQ  skip
	CMPL SI, AX
	JEQ  skip
	SHRQ $16, CX
	DECL DX
	JNE  tolerate

	// Write the table to descriptor 3, and exit.
	MOVQ BX, 8(R12)
	MOVL $1, AX
	MOVL $3, DI
	MOVQ R12, SI
	MOVQ 0(R12), DX
	SYSCALL
	MOVL $231, AX
	MOVL $1, DI
	SYSCALL

skip:
	MOVWQZX 62(BX), CX
	INCQ CX
	SHLQ $6, CX
	ADDQ CX, BX
	JMP  call

TEXT code1<>(SB), NOSPLIT|NOFRAME, $0-0
	RET

// func bounds() (from, to uintptr)
TEXT ·bounds(SB), NOSPLIT, $0-16
	LEAQ code0<>(SB), AX
	MOVQ AX, from+0(FP)
	LEAQ code1<>(SB), AX
	MOVQ AX, to+8(FP)
	RET
