/* All that the kernel knows of the machine below it. `native.c` makes a PC of this, `paravirt.c` a domain of a
 * hypervisor; porting the kernel is writing one more such file. A page is a number, its address times 4096. */
#pragma once
#include "../lib/cpu.h"
#include "../lib/interrupts.h"          /* struct Frame; the rest of it is for native.c */
#include "../lib/paging.h"

#define PAGE_SHIFT 12
#define ENTRIES 512                     /* in a table of PAE: 64-bit entries */

/* ---- what the machine calls: interrupts are off, and stay off in the kernel except in machine_idle() ---- */

/* With a stack, and at least the first 512 KiB from first_page mapped to themselves. Pages up to end_page are free. */
void kernel(const char *command_line, u32 first_page, u32 end_page) __attribute__((noreturn));
/* An exception or a system call; `address` is that of a page fault. */
void kernel_trap(struct Frame *frame, u32 address);
/* `count` ticks of the clock have passed. */
void kernel_ticks(struct Frame *frame, u32 count);

/* ---- what the kernel calls ---- */

/* Text for the world, and the verdict that ends the machine. */
void machine_write(const char *text, u32 length);
void machine_end(u8 verdict) __attribute__((noreturn));

/* Maps all pages below end_page to themselves, with kernel_page_bits(); gives the page of the top table, which maps
 * nothing else. Its first entry is the kernel's and stands in the top table of every address space. */
u32 machine_map(u32 end_page);

#define TICKS_PER_SECOND 100
void machine_start_clock(void);
u64 machine_time(void);                 /* grows; the unit is the machine's own */
void machine_idle(void);                /* waits for an interrupt, and takes it */
void machine_null(void);                /* asks the machine for as little as possible */

/* How many pages the machine has taken by page_get() for somebody outside, and will page_put(): as good as free. */
u32 machine_pages_lent(void);

/* Page tables. Changes are collected by pte_set and hold after pte_commit, which then also forgets old translations: of
 * one address, of all, or of none if nothing was there before. A table that belongs to no address space yet is
 * plain memory and needs no pte_set. */
#define FLUSH_NOTHING 0u
#define FLUSH_EVERYTHING 1u             /* all other values: an address */
u64 pte_value(u32 page, u32 bits);
void pte_set(u64 *entry, u64 value);
void pte_commit(u32 flush);
void table_make(u32 page);              /* from the commit on, this page is a table: no more stores to it */
void table_drop(u32 page);              /* from the commit on, it is plain memory again */
void space_make(u32 top);               /* from the commit on, this table of type "top" can be switched to */
void space_drop(u32 top);               /* at once: no longer; its tables may be dropped */

/* Another address space, and the stack on which its interrupts begin. */
void machine_switch(u32 top, u32 stack_end);

/* A frame for a program that starts, and where a new stack with a frame on it begins to run. */
extern const u32 user_code_selector, user_data_selector;
void frame_resume(void);
