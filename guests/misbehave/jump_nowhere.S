/* Jumps to a physical address where there is neither memory nor device. */

        .text
        .globl  main
main:
        movl    $0xD0000000, %eax
        jmp     *%eax
