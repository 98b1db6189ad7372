/* The first return of a process to its program; later ones are in lib/vectors.S. */
#include "../lib/segments.h"

        .text
        .globl  frame_resume
frame_resume:
        movl    $USER_DATA, %eax
        movw    %ax, %ds
        movw    %ax, %es
        popa
        addl    $8, %esp                # vector and error code
        iret
