/* From the loader's 32-bit code to 64-bit code: tables of four levels, PAE, EFER.LME, paging, a far jump
 * (SDM volume 3A, 9.8.5). Nothing here is 64-bit before the jump. */

#define HEADER_MAGIC 0x1BADB002
#define HEADER_FLAGS 0x00010002          /* the addresses below; tell us how much memory there is */
#define MSR_EFER 0xC0000080
#define EFER_SCE 0x001
#define EFER_LME 0x100
#define EFER_NXE 0x800
#define CR4_PAE 0x20
#define CR0_WP_PG 0x80010000
#define PRESENT_WRITABLE_USER 7
#define LARGE 0x80

        .section .multiboot, "a"
        .balign 4
header: .long   HEADER_MAGIC
        .long   HEADER_FLAGS
        .long   -(HEADER_MAGIC + HEADER_FLAGS)
        .long   header, image_start, data_end, image_end, _start

        .section .text._start, "ax"
        .code32
        .globl  _start
_start:
        movl    $stack_top, %esp
        cld
        # The first GiB at its place, in pages of 2 MiB, for everybody: what ring 3 may is shown elsewhere.
        movl    $directory_pointers + PRESENT_WRITABLE_USER, level4
        movl    $directory + PRESENT_WRITABLE_USER, directory_pointers
        movl    $PRESENT_WRITABLE_USER + LARGE, %eax
        movl    $directory, %edi
1:      movl    %eax, (%edi)
        addl    $0x200000, %eax
        addl    $8, %edi
        cmpl    $directory + 4096, %edi
        jne     1b

        movl    %cr4, %eax
        orl     $CR4_PAE, %eax
        movl    %eax, %cr4
        movl    $level4, %eax
        movl    %eax, %cr3
        movl    $MSR_EFER, %ecx
        rdmsr
        orl     $EFER_LME | EFER_SCE | EFER_NXE, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $CR0_WP_PG, %eax
        movl    %eax, %cr0               # EFER.LMA is set now: this is compatibility mode
        lgdt    gdt_register
        ljmp    $0x08, $1f

        .code64
1:      movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        xorl    %eax, %eax
        movl    %eax, %fs
        movl    %eax, %gs
        movq    $stack_top, %rsp
        call    main
        call    finish

        .section .data
        .balign 16
        .globl  gdt
gdt:    .quad   0
        .quad   0x00AF9B000000FFFF       # 0x08 code of ring 0, 64 bits
        .quad   0x00CF93000000FFFF       # 0x10 data of ring 0
        .quad   0x00CFFB000000FFFF       # 0x18 code of ring 3, 32 bits
        .quad   0x00CFF3000000FFFF       # 0x20 data of ring 3
        .quad   0x00AFFB000000FFFF       # 0x28 code of ring 3, 64 bits; SYSRET counts on this order
        .quad   0, 0                     # 0x30 TSS, 16 bytes
gdt_end:
gdt_register:
        .word   gdt_end - gdt - 1
        .quad   gdt

        .section .bss.tables, "aw", @nobits
        .balign 4096
        .globl  level4
level4:                 .skip 4096
directory_pointers:     .skip 4096
directory:              .skip 4096
        .globl  spare_tables
spare_tables:           .skip 4096 * 4
        .balign 16
        .skip   16384
        .globl  stack_top
stack_top:
