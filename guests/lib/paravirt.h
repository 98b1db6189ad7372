/* For the assembler: what the loader of Xen's kernels reads, and how a ported kernel calls its hypervisor (notes: elfnote.h
 * of Xen's public headers). */
#pragma once
#define SEGMENT_OF_BOTH 0xE033          /* flat data of ring 3, which ring 1 may use too */

        .macro  note type, description:vararg
        .balign 4
        .long   4, 2f - 1f, \type
        .asciz  "Xen"
1:      \description
2:      .balign 4
        .endm

        .macro  xen_notes name
        .section .note.Xen, "a", @note
        note    1, .long _start                 # entry
        note    2, .long hypercall_page
        note    3, .long 0                      # linear address of physical address 0
        note    4, .long 0
        note    5, .asciz "xen-3.0"
        note    6, .asciz "\name"
        note    8, .asciz "generic"
        note    9, .asciz "yes"                 # PAE
        .endm

        # u32 hypercall(u32 number, u32 a, u32 b, u32 c, u32 d)
        .macro  hypercall_function
        .globl  hypercall
hypercall:
        pushl   %ebx
        pushl   %esi
        movl    12(%esp), %eax
        movl    16(%esp), %ebx
        movl    20(%esp), %ecx
        movl    24(%esp), %edx
        movl    28(%esp), %esi
        shll    $5, %eax
        addl    $hypercall_page, %eax
        call    *%eax
        popl    %esi
        popl    %ebx
        ret
        .endm
