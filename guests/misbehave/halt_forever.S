/* Sleeps with interrupts off: nothing can wake it. A good hypervisor notices. */

        .text
        .globl  main
main:
        cli
        hlt
        jmp     main
