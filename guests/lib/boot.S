/* The first instructions of every guest. A multiboot loader has left us in flat 32-bit protected mode, paging and
 * interrupts off, EAX = 0x2BADB002, EBX = address of the information structure (Multiboot 0.6.96, 3.2). */

#define HEADER_MAGIC 0x1BADB002
#define HEADER_FLAGS 0x00000002          /* bit 1: tell us how much memory there is */

        .section .multiboot, "a"
        .balign 4
        .long   HEADER_MAGIC
        .long   HEADER_FLAGS
        .long   -(HEADER_MAGIC + HEADER_FLAGS)

        .section .text._start, "ax"
        .weak   _start                  # a guest may bring its own and do without everything below
_start:
        # The loader promises no stack, so bring our own; C wants the direction flag clear.
        movl    $stack_top, %esp
        cld
        # start(magic, information) does not return.
        pushl   %ebx
        pushl   %eax
        call    start

        .section .bss.stack, "aw", @nobits
        .balign 16
        .skip   16384
        .globl  stack_top
stack_top:
