/* Never does anything again, and never stops doing it: only a limit ends it. */

        .text
        .globl  main
main:
        jmp     .
