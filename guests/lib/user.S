/* run_user and leave_user: a function call that passes through ring 3. */
#include "segments.h"

        .section .text.user, "ax"
        .globl  run_user, leave_user
run_user:
        # Keep what C wants kept, and remember where.
        movl    4(%esp), %eax           # entry
        movl    8(%esp), %ecx           # stack
        movl    12(%esp), %edx          # EFLAGS
        pushl   %ebp
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        movl    %esp, kernel_stack
        # The next interrupt from ring 3 starts its frame right here (TSS.ESP0).
        movl    %esp, task_state + 4
        # IRET to ring 3: the only way out is to pretend that we were once called from there.
        pushl   $USER_DATA
        pushl   %ecx
        pushl   %edx
        pushl   $USER_CODE
        pushl   %eax
        movl    $USER_DATA, %eax
        movw    %ax, %ds
        movw    %ax, %es
        iret

leave_user:
        # Forget the interrupt frames and return to the caller of run_user.
        movl    4(%esp), %eax
        movl    kernel_stack, %esp
        popl    %edi
        popl    %esi
        popl    %ebx
        popl    %ebp
        ret

        .section .bss.user, "aw", @nobits
        .balign 4
kernel_stack:
        .skip   4
