/* Where the hypervisor enters. */
#include "../lib/paravirt.h"

        xen_notes disk

        .section .text.pages, "ax"
        .balign 4096
        .globl  hypercall_page, shared_info, grant_table
hypercall_page:
        .skip   4096                            # the hypervisor writes its stubs here
shared_info:
        .skip   4096                            # and maps a page of its own here
grant_table:
        .skip   4096                            # and here

        .text
        .globl  _start, on_event
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

        # An event: who sleeps looks for himself. Events stay held off until the next sleep.
on_event:
        movb    $0, shared_info
        iret

        .section .bss.stack, "aw", @nobits
        .balign 16
        .skip   8192
stack_end:
