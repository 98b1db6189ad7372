/* From the reset of 1978 to the protected mode of 1985, in two sectors. The BIOS reads sector 0 to 0x7C00 and jumps to
 * it, in real mode, with the boot drive in DL. Everything we want from the PC there we ask the BIOS for, by INT;
 * nothing of that is left once CR0.PE is set. */

#include "../abi/machine_map.h"

#define SECOND_SECTOR 0x7E00
#define MEMORY_MAP 0x8000               /* one entry of INT 15h, E820 */
#define E820_SIGNATURE 0x534D4150       /* "SMAP" */

/* -------------------------------------------------------------------- sector 0: the 512 bytes we are given */
        .section .sector0, "ax"
        .code16
        .globl  _start
_start:
        # CS may be 0 with IP 0x7C00 or 0x7C0 with IP 0: settle that first, then stack and segments.
        ljmp    $0, $1f
1:      cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7C00, %sp
        sti
        cld
        movb    %dl, boot_drive

        # INT 10h, AH = 0Eh: teletype output
        movw    $hello, %si
        call    say

        # INT 13h, AH = 02h: read one sector; cylinder 0, head 0, sector 2 (they count from 1) to ES:BX
        movw    $0x0201, %ax
        movw    $0x0002, %cx
        movb    $0, %dh
        movb    boot_drive, %dl
        movw    $SECOND_SECTOR, %bx
        int     $0x13
        jc      1f
        cmpl    $E820_SIGNATURE, sector1_mark
        je      real_mode_continued
1:      movw    $no_sector, %si
        call    say
        # Verdict by OUT: the last thing a lost boot sector can do.
        movb    $VERDICT_FAIL, %al
        outb    %al, $DEBUG_EXIT_PORT
2:      cli
        hlt
        jmp     2b

say:
        # DS:SI = text that ends with a zero
        lodsb
        testb   %al, %al
        jz      1f
        movb    $0x0E, %ah
        movw    $0x0007, %bx
        int     $0x10
        jmp     say
1:      ret

hello:  .asciz  "Hello from real mode\r\n"
no_sector:
        .asciz  "cannot read sector 1\r\n"
boot_drive:
        .byte   0

/* -------------------------------------------------------------------- sector 1: what we fetched ourselves */
        .section .sector1, "ax"
        .code16
sector1_mark:
        .long   E820_SIGNATURE
checks:                                 # one letter per check: P or F, K for the key
        .ascii  "FFF"
key:    .byte   0
real_mode_continued:
        # INT 15h, AX = E820h: the memory map, one entry a call; EBX says where to go on, zero at the end.
        xorl    %ebx, %ebx
        xorw    %bp, %bp                # entries
1:      movl    $0xE820, %eax
        movl    $E820_SIGNATURE, %edx
        movl    $20, %ecx
        movw    $MEMORY_MAP, %di
        int     $0x15
        jc      2f
        cmpl    $E820_SIGNATURE, %eax
        jne     2f
        incw    %bp
        # Usable memory (type 1) that starts at 1 MiB? Then there is room for a kernel.
        cmpl    $HIGH_MEMORY, MEMORY_MAP
        jne     3f
        cmpb    $1, MEMORY_MAP + 16
        jne     3f
        movb    $'P', checks
3:      testl   %ebx, %ebx
        jnz     1b
        cmpw    $2, %bp
        jb      2f
        movb    $'P', checks + 1
2:
        # INT 12h: KiB of base memory, from the BIOS data area
        int     $0x12
        cmpw    $512, %ax
        jb      1f
        cmpw    $640, %ax
        ja      1f
        movb    $'P', checks + 2
1:
        # INT 16h, AH = 00h: wait for a key; AL is its letter. AH = 01h before it would only have looked.
        movw    $press, %si
        call    say
        movb    $0, %ah
        int     $0x16
        movb    %al, key

        # Protected mode: a GDT, one bit, and a far jump that makes CS believe in it.
        cli
        lgdt    gdt_register
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $0x08, $protected

press:  .asciz  "press a key\r\n"

        .code32
protected:
        movl    $0x10, %eax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x7C00, %esp

        # No BIOS any more: from here on the serial port, by hand.
        movl    $report_map, %esi
        movb    checks, %bl
        call    report
        movl    $report_entries, %esi
        movb    checks + 1, %bl
        call    report
        movl    $report_base, %esi
        movb    checks + 2, %bl
        call    report
        movl    $report_key, %esi
        movb    $'F', %bl
        cmpb    $' ', key
        jb      1f
        movb    $'P', %bl
1:      call    report
        movl    $report_protected, %esi
        movb    $'P', %bl
        call    report

        # One letter that is not P spoils it.
        movb    $VERDICT_PASS, %al
        cmpb    $0, failures
        je      1f
        movb    $VERDICT_FAIL, %al
1:      outb    %al, $DEBUG_EXIT_PORT
2:      cli
        hlt
        jmp     2b

report:
        # BL = P or F, ESI = the name: "PASS name" or "FAIL name"
        movl    $word_pass, %edi
        cmpb    $'P', %bl
        je      1f
        movl    $word_fail, %edi
        incb    failures
1:      xchgl   %esi, %edi
        call    send
        movl    %edi, %esi
send:
        # ESI = text to COM1, when its transmitter is empty (line status, bit 5)
        movb    (%esi), %cl
        incl    %esi
        testb   %cl, %cl
        jz      2f
        movw    $COM1_BASE + 5, %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movw    $COM1_BASE, %dx
        movb    %cl, %al
        outb    %al, %dx
        jmp     send
2:      ret

failures:
        .byte   0
word_pass:
        .asciz  "PASS "
word_fail:
        .asciz  "FAIL "
report_map:
        .asciz  "E820: memory at 1 MiB\n"
report_entries:
        .asciz  "E820: at least two entries\n"
report_base:
        .asciz  "INT 12h: base memory\n"
report_key:
        .asciz  "INT 16h: a key\n"
report_protected:
        .asciz  "protected mode\n"

        .balign 8
gdt:    .quad   0
        .quad   0x00CF9A000000FFFF      # 0x08: code, base 0, limit 4 GiB, 32 bits
        .quad   0x00CF92000000FFFF      # 0x10: data, likewise
gdt_register:
        .word   . - gdt - 1
        .long   gdt
