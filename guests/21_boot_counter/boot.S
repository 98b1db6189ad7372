/* A disk that remembers: the boot sector has the BIOS load a second stage, which counts in a sector of its own how often
 * the disk was booted. All of it in real mode; the BIOS is the driver, whatever the adapter. */

#include "../abi/machine_map.h"

#define STAGE_SECTOR 1
#define STAGE 0x7E00
#define COUNTER_SECTOR 2
#define COUNTER 0x8000                  /* where this file has it in the image, and where it is read to */
#define READ_BACK 0x9000
#define SIGNATURE 0x746F6F62            /* "boot" */

/* -------------------------------------------------------------------- sector 0 */
        .section .sector0, "ax"
        .code16
        .globl  _start
_start:
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

        # INT 13h, AH = 41h: does the BIOS know sectors by number (Enhanced Disk Drive Specification)?
        movb    $0x41, %ah
        movw    $0x55AA, %bx
        int     $0x13
        jc      1f
        cmpw    $0xAA55, %bx
        jne     1f
        movw    $STAGE, %bx
        movb    $STAGE_SECTOR, %cl
        movb    $0x42, %ah
        call    transfer
        jc      1f
        cmpl    $SIGNATURE, stage_mark
        je      stage
1:      movw    $no_stage, %si
        jmp     fail

transfer:
        # AH = 42h: read, 43h: write; sector CL, at BX. Sets the carry flag when it failed.
        movb    %cl, packet_sector
        movw    %bx, packet_offset
        movw    $packet, %si
        movb    boot_drive, %dl
        movb    $0, %al                 # a write is not verified
        int     $0x13
        ret

fail:
        # SI = the name of what failed
        movw    $word_fail, %di
        xchgw   %si, %di
        call    say
        movw    %di, %si
        call    say
        movb    $VERDICT_FAIL, %al
finish:
        # AL = verdict
        outb    %al, $DEBUG_EXIT_PORT
1:      cli
        hlt
        jmp     1b

say:
        # SI = text that ends with a zero, to COM1 when its transmitter is empty (line status, bit 5)
        movb    (%si), %cl
        incw    %si
        testb   %cl, %cl
        jz      2f
        movw    $COM1_BASE + 5, %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movw    $COM1_BASE, %dx
        movb    %cl, %al
        outb    %al, %dx
        jmp     say
2:      ret

        .balign 4
packet: .byte   16, 0                   # disk address packet: its size
        .word   1                       # sectors
packet_offset:
        .word   0
        .word   0                       # segment
packet_sector:
        .quad   0
boot_drive:
        .byte   0
word_fail:
        .asciz  "FAIL "
no_stage:
        .asciz  "the second stage is loaded\n"

/* -------------------------------------------------------------------- sector 1: the second stage */
        .section .sector1, "ax"
        .code16
stage_mark:
        .long   SIGNATURE
stage:
        movw    $pass_stage, %si
        call    say

        movw    $COUNTER, %bx
        movb    $COUNTER_SECTOR, %cl
        movb    $0x42, %ah
        call    transfer
        movw    $name_read, %si
        jc      fail
        cmpl    $SIGNATURE, COUNTER
        jne     fail

        # One more, written and read back to another place.
        incl    COUNTER + 4
        movw    $COUNTER, %bx
        movb    $COUNTER_SECTOR, %cl
        movb    $0x43, %ah
        call    transfer
        movw    $name_written, %si
        jc      fail
        movw    $READ_BACK, %bx
        movb    $COUNTER_SECTOR, %cl
        movb    $0x42, %ah
        call    transfer
        movw    $name_written, %si
        jc      fail
        movl    READ_BACK + 4, %eax
        cmpl    COUNTER + 4, %eax
        jne     fail

        # EAX in decimal, from the last digit on
        movw    $digits_end, %di
        movl    $10, %ebx
1:      xorl    %edx, %edx
        divl    %ebx
        addb    $'0', %dl
        decw    %di
        movb    %dl, (%di)
        testl   %eax, %eax
        jnz     1b
        movw    $boot_number, %si
        call    say
        movw    %di, %si
        call    say
        movw    $pass_written, %si
        call    say
        movb    $VERDICT_PASS, %al
        jmp     finish

pass_stage:
        .asciz  "PASS the second stage is loaded\n"
name_read:
        .asciz  "the counter is read\n"
boot_number:
        .asciz  "boot number "
digits: .skip   10
digits_end:
        .asciz  "\n"
pass_written:
        .ascii  "PASS "
name_written:
        .asciz  "the counter is written\n"

/* -------------------------------------------------------------------- sector 2: what is kept */
        .section .sector2, "a"
        .long   SIGNATURE
        .long   0                       # boots
