/* Where the hypervisor enters. */
#include "../lib/paravirt.h"

        xen_notes nanobench

        .section .text.pages, "ax"
        .balign 4096
        .globl  hypercall_page, shared_info
hypercall_page:
        .skip   4096                            # the hypervisor writes its stubs here
shared_info:
        .skip   4096                            # and maps a page of its own here

        .text
        .globl  _start, enter_user, on_end
_start:
        # ESI = the start information
        cld
        movl    $stack_end, %esp
        movl    $SEGMENT_OF_BOTH, %ecx
        movw    %cx, %ds
        movw    %cx, %es
        pushl   %esi
        call    start_domain

        hypercall_function

        # u32 enter_user(void): into ring 3, until it calls on_end; what EDI is then
enter_user:
        pushl   %ebp
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        movl    %esp, kernel_stack
        pushl   $SEGMENT_OF_BOTH
        pushl   $0                              # it needs no stack
        pushl   $2                              # EFLAGS
        pushl   $0xE02B                         # flat code of ring 3
        pushl   $user_loop
        iret
on_end:
        movl    %edi, %eax
        movl    kernel_stack, %esp
        popl    %edi
        popl    %esi
        popl    %ebx
        popl    %ebp
        ret

        .section .bss.stack, "aw", @nobits
        .balign 16
        .skip   8192
stack_end:
        .skip   4096
        .globl  trap_stack_end
trap_stack_end:
kernel_stack:
        .skip   4
