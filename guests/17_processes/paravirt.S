/* What the loader reads, where the hypervisor enters, and how we leave for ring 3. */
#include "xen.h"

        .macro  note type, description:vararg
        .balign 4
        .long   4, 2f - 1f, \type
        .asciz  "Xen"
1:      \description
2:      .balign 4
        .endm

        .section .note.Xen, "a", @note
        note    NOTE_ENTRY, .long _start
        note    NOTE_HYPERCALL_PAGE, .long hypercall_page
        note    NOTE_VIRT_BASE, .long 0
        note    NOTE_PADDR_OFFSET, .long 0
        note    NOTE_XEN_VERSION, .asciz "xen-3.0"
        note    NOTE_GUEST_OS, .asciz "processes"
        note    NOTE_LOADER, .asciz "generic"
        note    NOTE_PAE_MODE, .asciz "yes"
        note    NOTE_FEATURES, .asciz ""

        .section .text.pages, "ax"
        .balign 4096
        .globl  hypercall_page, shared_info
hypercall_page:
        .skip   4096                    # the hypervisor writes its stubs here
shared_info:
        .skip   4096                    # and maps a page of its own here

        .text
        .globl  _start, frame_resume, vectors_of_traps, on_system_call, on_event, on_failsafe
_start:
        # ESI = the start information, ESP = a stack that is the last page in use
        cld
        movl    %esp, %eax
        movl    $boot_stack_end, %esp
        movl    $RING3_DATA, %ecx       # ring 1 may use it too, so it is never changed back
        movw    %cx, %ds
        movw    %cx, %es
        pushl   %eax
        pushl   %esi
        call    paravirt_start

        .balign 16
vectors_of_traps:
        .set    vector, 0
        .rept   20
        .balign 16
        .if     !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
        pushl   $0
        .endif
        pushl   $vector
        jmp     on_trap
        .set    vector, vector + 1
        .endr

on_failsafe:
        # A segment of a program could not be loaded: as if that had been #GP. Its four segments are on the stack.
        addl    $16, %esp
        pushl   $0
        pushl   $13
        jmp     on_trap
on_system_call:
        pushl   $0
        pushl   $0x80
on_trap:
        pusha
        movl    $trap, %eax
        jmp     enter
on_event:
        pushl   $0
        pushl   $0
        pusha
        movl    $event, %eax
enter:
        movl    $RING3_DATA, %ecx
        movw    %cx, %ds
        movw    %cx, %es
        cld
        pushl   %esp
        call    *%eax
        addl    $4, %esp

frame_resume:
        # Let events come, and look for one that could not: it has only left a mark.
        movb    $0, shared_info + 1
        cmpb    $0, shared_info
        jne     1f
        popa
        addl    $8, %esp
        iret
1:      movb    $1, shared_info + 1
        pushl   %esp
        call    event
        addl    $4, %esp
        jmp     frame_resume

        .section .bss.stack, "aw", @nobits
        .balign 16
        .skip   8192
boot_stack_end:
