/* 256 entry points, 16 bytes apart, that make every interrupt look alike: error code, vector, registers. */
#include "segments.h"

        .text
        .balign 16
        .globl  vectors
vectors:
        .set    vector, 0
        .rept   256
        .balign 16
        # The CPU pushes an error code for 8, 10-14, 17, 21, 29 and 30; for the others we push a zero.
        .if     !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
        pushl   $0
        .endif
        pushl   $vector
        jmp     enter
        .set    vector, vector + 1
        .endr

enter:
        # Save the registers and take the kernel's data segments; the old ones need not be read to be restored.
        pusha
        movl    $KERNEL_DATA, %eax
        movw    %ax, %ds
        movw    %ax, %es
        cld
        # dispatch(frame)
        pushl   %esp
        call    dispatch
        addl    $4, %esp
        # Going back to ring 3 (RPL of the saved CS)? Then with the user's data segments.
        testl   $3, 44(%esp)
        jz      1f
        movl    $USER_DATA, %eax
        movw    %ax, %ds
        movw    %ax, %es
1:      popa
        addl    $8, %esp
        iret
