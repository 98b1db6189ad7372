/* A process stands still where it calls this, and goes on when somebody else calls it. */
        .text
        .globl  swap_stacks
swap_stacks:
        movl    4(%esp), %eax           # where to save
        movl    8(%esp), %ecx           # what to load
        pushl   %ebp
        pushl   %ebx
        pushl   %esi
        pushl   %edi
        movl    %esp, (%eax)
        movl    %ecx, %esp
        popl    %edi
        popl    %esi
        popl    %ebx
        popl    %ebp
        ret
