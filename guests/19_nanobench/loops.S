/* The operations. Each is a loop between two names, loop_X and end_X, so that it can be found in the image: what stands
 * there is what is measured, and nothing else. ESI counts down, EDI counts what was answered; EAX to EDX are free.
 *
 * u32 run_X(u32 count) */
#include "loops.h"

#ifdef PARAVIRT
#define PORT 0xE9                       /* the hypervisor lets a guest have few ports; this one reads as itself */
#else
#define PORT 0x80
#endif

        .macro  begin name
        .text
        .balign 64
        .globl  run_\name, loop_\name, end_\name
run_\name:
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        movl    16(%esp), %esi
        movl    %esi, %edi
        .endm

        .macro  again name
        decl    %esi
        jnz     loop_\name
        .endm

        .macro  finish name, last:vararg
end_\name:
        \last
        movl    %edi, %eax
        popl    %edi
        popl    %esi
        popl    %ebx
        ret
        .endm

        begin   null                    # the loop itself
loop_null:
        again   null
        finish  null

        begin   in
loop_in:
        inb     $PORT, %al
        again   in
        finish  in

        begin   callret
loop_callret:
        call    1f
        again   callret
        jmp     end_callret
1:      ret
        finish  callret

        begin   cpuid
loop_cpuid:
        xorl    %eax, %eax
        cpuid
        again   cpuid
        finish  cpuid

        begin   rdtsc
loop_rdtsc:
        rdtsc
        again   rdtsc
        finish  rdtsc

        # A fault is answered by on_divide_error and on_page_fault, which step over the instruction.
        begin   divzero
        xorl    %edi, %edi
        xorl    %ebx, %ebx
loop_divzero:
        divl    %ebx
        again   divzero
        finish  divzero

        begin   pgfault
        xorl    %edi, %edi
loop_pgfault:
        movl    ABSENT, %eax
        again   pgfault
        finish  pgfault

        .globl  on_divide_error, on_page_fault, on_system_call
on_divide_error:
        incl    %edi
        addl    $2, (%esp)              # the length of DIV
        iret
on_page_fault:
        incl    %edi
        addl    $4, %esp                # the error code
        addl    $5, (%esp)              # the length of MOV
        iret
on_system_call:
        incl    %edi
        iret

#ifdef PARAVIRT
        # Events are masked by a byte in a page that the hypervisor reads; nothing to do if none waits.
        begin   clisti
loop_clisti:
        movb    $1, shared_info + 1
        movb    $0, shared_info + 1
        cmpb    $0, shared_info
        jne     loop_clisti
        again   clisti
        finish  clisti

        begin   hypercall
loop_hypercall:
        movl    $17, %eax               # xen_version: which is version()
        xorl    %ebx, %ebx
        call    hypercall_page + 32 * 17
        again   hypercall
        finish  hypercall
#else
        begin   clisti
loop_clisti:
        cli
        sti
        again   clisti
        finish  clisti, cli

        begin   hypercall
loop_hypercall:
        movl    $5, %eax                # KVM's kick_cpu, which does nothing
        xorl    %ebx, %ebx
        vmmcall
        again   hypercall
        finish  hypercall

        begin   cr0wr
        movl    %cr0, %eax
loop_cr0wr:
        movl    %eax, %cr0
        again   cr0wr
        finish  cr0wr

        # The first page of the window: another frame each time. Nobody uses the old translation, so none is flushed.
        begin   ptemod
        movl    window_table, %eax
loop_ptemod:
        xorl    $0x1000, %eax
        movl    %eax, window_table
        again   ptemod
        finish  ptemod
#endif

        # Ring 3: on a page of its own
        .section .user, "ax"
        .globl  user_loop, user_count, loop_syscall, end_syscall
user_count:
        .long   0
user_loop:
        movl    user_count, %esi
        xorl    %edi, %edi
loop_syscall:
        int     $0x80
        again   syscall
end_syscall:
        int     $0x81
