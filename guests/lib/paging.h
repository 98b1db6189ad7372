/* Bits of page-table entries and of the #PF error code (SDM volume 3A, 4.3 to 4.7). */
#pragma once
#include "cpu.h"

#define PAGE_PRESENT 0x001
#define PAGE_WRITABLE 0x002
#define PAGE_USER 0x004
#define PAGE_ACCESSED 0x020
#define PAGE_DIRTY 0x040
#define PAGE_LARGE 0x080                /* in a directory entry: 4 MiB with PSE, 2 MiB with PAE */
#define PAGE_NO_EXECUTE (1ull << 63)    /* PAE only */

#define FAULT_PRESENT 0x01              /* a protection violation; 0: nothing there */
#define FAULT_WRITE 0x02
#define FAULT_USER 0x04
#define FAULT_RESERVED 0x08
#define FAULT_FETCH 0x10                /* only where NX can be */

#define PAGE_SIZE 4096
#define PAGE_TABLE __attribute__((aligned(PAGE_SIZE)))
