/* Ways into the kernel and out of it: gates, SYSCALL, IRETQ. */

        .section .text
        .code64

/* Every vector pushes an error code, its own or a zero, and its number. */
        .globl  vectors
        .balign 16
vectors:
        .set    vector, 0
        .rept   0x81
        .balign 16
        .if     !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
        pushq   $0
        .endif
        pushq   $vector
        jmp     common
        .set    vector, vector + 1
        .endr

common: cld
        pushq   %r15
        pushq   %r14
        pushq   %r13
        pushq   %r12
        pushq   %r11
        pushq   %r10
        pushq   %r9
        pushq   %r8
        pushq   %rdi
        pushq   %rsi
        pushq   %rbp
        pushq   %rbx
        pushq   %rdx
        pushq   %rcx
        pushq   %rax
        movq    %rsp, %rdi
        call    interrupt
        popq    %rax
        popq    %rcx
        popq    %rdx
        popq    %rbx
        popq    %rbp
        popq    %rsi
        popq    %rdi
        popq    %r8
        popq    %r9
        popq    %r10
        popq    %r11
        popq    %r12
        popq    %r13
        popq    %r14
        popq    %r15
        addq    $16, %rsp
        iretq

/* SYSCALL brings RIP in RCX, RFLAGS in R11, the user's RSP where it was; GS leads to the kernel's memory. */
        .globl  system_call_entry
system_call_entry:
        swapgs
        movq    %rsp, %gs:8
        movq    %gs:0, %rsp
        pushq   %rcx
        pushq   %r11
        movq    %rax, %rdi
        movq    %rdx, %rsi
        movq    %rcx, %rdx
        movq    %r11, %rcx
        call    system_call
        popq    %r11
        popq    %rcx
        movq    %gs:8, %rsp
        swapgs
        sysretq

/* u64 run_user(code selector, rip, rsp): to ring 3 with IRETQ; leave_user(value) comes back. */
        .globl  run_user
run_user:
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, kernel_stack_pointer
        pushq   $0x23
        pushq   %rdx
        pushq   $0x202
        pushq   %rdi
        pushq   %rsi
        iretq

        .globl  leave_user
leave_user:
        cli
        movq    kernel_stack_pointer, %rsp
        movq    %rdi, %rax
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret

/* bool attempt(u64 (*what)(u64), u64 argument, u64 *result): whether it came back; an exception ends it. */
        .globl  attempt
attempt:
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        pushq   %rdx
        movq    %rsp, recovery_stack_pointer
        movq    %rdi, %rax
        movq    %rsi, %rdi
        call    *%rax
        popq    %rdx
        movq    %rax, (%rdx)
        movl    $1, %eax
2:      movq    $0, recovery_stack_pointer
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret
        .globl  recover
recover:
        movq    recovery_stack_pointer, %rsp
        popq    %rdx
        xorl    %eax, %eax
        jmp     2b

/* u64 misaligned_frame(void): raises a vector with RSP % 16 == 9, which the CPU rounds down. */
        .globl  misaligned_interrupt
misaligned_interrupt:
        movq    %rsp, %rax
        subq    $23, %rsp
        int     $0x41
        movq    %rax, %rsp
        ret

        .globl  fault_without_stack
fault_without_stack:
        movq    %rdi, %rsp
        ud2

        .section .bss
        .balign 8
kernel_stack_pointer:   .skip 8
        .globl  recovery_stack_pointer
recovery_stack_pointer: .skip 8
