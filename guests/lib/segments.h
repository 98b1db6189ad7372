/* The global descriptor table and the task state segment. The order kernel code, kernel data, user code, user data
 * is not a matter of taste: SYSENTER and SYSEXIT compute all four selectors from the first (SDM volume 2B). */
#pragma once

#define KERNEL_CODE 0x08
#define KERNEL_DATA 0x10
#define USER_CODE 0x1B                  /* 0x18 with RPL 3 */
#define USER_DATA 0x23                  /* 0x20 with RPL 3 */
#define TASK_STATE 0x28
#define FIRST_FREE_SELECTOR 0x30        /* guests may define 0x30, 0x38 ... 0x78 */

#ifndef __ASSEMBLER__
#include "cpu.h"

/* Access byte of a descriptor (SDM volume 3A, 3.4.5) */
#define PRESENT 0b10000000
#define DPL3 0b01100000
#define CODE_SEGMENT 0b00011010
#define DATA_SEGMENT 0b00010010
#define AVAILABLE_TSS 0b00001001

/* The 32-bit TSS (SDM volume 3A, 7.2.1). We use it for three things only: the stack on which ring 3 enters ring 0,
 * the I/O permission bitmap, and (05_faults) the back link. */
struct TaskState {
    u32 back_link, esp0, ss0, unused[22];
    u16 trap, io_map_base;
    u8 io_map[8192 + 1];                /* one bit per port, 1 = denied; the last byte must be all ones */
} __attribute__((packed));
extern struct TaskState task_state;

void load_segments(void);
void set_descriptor(u16 selector, u32 base, u32 limit, u8 access);
#endif
