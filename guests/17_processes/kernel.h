/* The parts of the kernel, and what they know of each other. */
#pragma once
#include "machine.h"

/* ---- memory.c: pages and address spaces ---- */

#define KERNEL_END (64u << 20)          /* as much memory as we map */
#define USER_BASE 0x40000000u           /* entry 1 of the top table; below are the kernel and the programs' text */
#define TABLES 32                       /* of 2 MiB each */
#define USER_END (USER_BASE + TABLES * ENTRIES * PAGE_SIZE)
#define STACK_END (USER_BASE + 16 * PAGE_SIZE)
#define HEAP_BASE STACK_END

/* What a process has mapped. The kernel believes its own records; the hardware's tables follow from them and are never
 * read, so that only pte_value() need know what stands in them. */
struct Space {
    u32 top, directory;                 /* pages of tables */
    u32 tables[TABLES];                 /* also pages, 0: none yet */
    u32 records[TABLES];                /* the pages of the records of each table, u32[ENTRIES] */
    u32 heap_end;
};
extern struct Space kernel_space;

static inline void *page_address(u32 page) { return (void *)(page << PAGE_SHIFT); }

void pages_start(u32 first_page, u32 end_page);
u32 page_get(void);                     /* somebody's old contents; 0: there is none left */
void page_hold(u32 page);               /* one more owner */
void page_put(u32 page);                /* one less */
u32 pages_free(void);
u32 kernel_page_bits(u32 page);

bool space_new(struct Space *space);
bool space_copy(struct Space *space, struct Space *from);      /* all pages shared until somebody writes */
void space_free(struct Space *space);
bool space_resolve(struct Space *space, u32 address, bool write);      /* a page fault; false: rightly so */
bool space_allows(struct Space *space, u32 address, u32 length, bool write);   /* for what a program hands in */
u32 space_heap(struct Space *space, int change);        /* the old end, -1: cannot be */
bool space_show_zeros(struct Space *space, u32 address, u32 pages);
void space_unmap(struct Space *space, u32 address, u32 pages);

/* ---- process.c: processes and the clock ---- */

enum State { UNUSED, READY, SLEEPING, WAITING, ENDED };
struct Process {
    enum State state;
    u32 number, status, wake_at, ticks_used;
    struct Process *parent;
    u32 stack_page, stack_pointer;      /* of the kernel for this process; the pointer while it does not run */
    struct Space space;
};
extern struct Process *current;

void processes_run(u32 program, u32 kind, u32 count) __attribute__((noreturn));
int process_fork(const struct Frame *frame);
int process_wait(u32 *status);
bool process_kill(u32 number);
u32 process_ticks_used(u32 number);
void process_end(u32 status);           /* the current one; does not return */
void process_sleep(u32 ticks);
void process_yield(void);
u32 ticks_now(void);

/* ---- console.c ---- */

void say(const char *text);
void check(const char *name, bool ok);
void verdict(void) __attribute__((noreturn));
