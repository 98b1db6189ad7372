/* The scene on which each instruction is played: tables at known places, of sizes that nobody else would choose, so
 * that whoever sees another's table sees that it is another's. */
#pragma once

#define MARK_BEFORE 0xA1                /* written to POST_PORT before and after the instruction */
#define MARK_AFTER 0xA2

#define GDT_AT 0x00400000
#define IDT_AT 0x00401000
#define LDT_AT 0x00402000
#define WINDOW_AT 0x00403000            /* where the data segments below begin that are not flat */
#define WINDOW_WORD 0x5EE1A6E5          /* what lies there */

/* Selectors beside the library's */
#define KERNEL_ALIAS 0x30               /* the same code as KERNEL_CODE */
#define USER_ALIAS 0x3B
#define KERNEL_WINDOW 0x40              /* data with base WINDOW_AT */
#define USER_WINDOW 0x4B
#define USER_CALL_GATE 0x53             /* from ring 3 into KERNEL_CODE */
#define OUR_LDT 0x70
#define OUR_TSS 0x78
#define GDT_SIZE 0xA0
#define LDT_SIZE 8

#define LANDING 0x90                    /* vectors: what INT n is tried with; ring 3 may */
#define KERNEL_LANDING 0x91             /* ring 3 may not */
#define LOOK 0x92                       /* notes the CS that the CPU pushes */
#define EXIT 0x80                       /* ends a user program */

#ifndef __ASSEMBLER__
/* Loads GDT, IDT, LDT and TSS. `gate` is where the call gate leads, `landing` and `look` where their vectors lead. */
void set_scene(const char *gate, const char *landing, const char *look);
#endif
