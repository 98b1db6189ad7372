/* Executes rubbish without ever having loaded an IDT: #UD finds no gate, nor does what follows. Triple fault. */

        .section .text._start, "ax"
        .globl  _start
_start:
        # 0xFF 0xFF is no instruction.
        .byte   0xFF, 0xFF, 0xFF, 0xFF
