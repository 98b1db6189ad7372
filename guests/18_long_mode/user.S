/* What runs in ring 3. */
        .section .text
        .code64
        .globl  user_system_calls, user_interrupt, user_forbidden, user_privileged, user_spin, user_32
user_system_calls:
        movq    $0x123456789ABCDEF0, %rbx
        movq    $0x0FEDCBA987654321, %r15
        movl    $1, %eax
        movq    $0x1111111100000000, %rdx
        stc
        syscall
after_syscall:
        .globl  after_syscall
        setc    %cl                      # SYSRET brings the flags back
        movzbl  %cl, %ecx
        addq    %rcx, %rax
        movq    $0x123456789ABCDEF0, %rcx
        cmpq    %rcx, %rbx
        jne     1f
        movq    $0x0FEDCBA987654321, %rcx
        cmpq    %rcx, %r15
        jne     1f
        movq    %rax, %rdx
        jmp     2f
1:      xorl    %edx, %edx
2:      movl    $2, %eax                 # the end, with a value
        syscall

user_interrupt:
        movq    $0x5555555500000001, %rdx
        int     $0x80
        ud2
user_forbidden:
        int     $0x41
        ud2
user_privileged:
        cli
        ud2
user_spin:
        incq    %rdx
        jmp     user_spin

        .code32
user_32:
        movl    $0x80000000, %edx
        addl    %edx, %edx               # 32 bits: zero, and no more
        int     $0x80
        ud2a
