/* What the kernel and its programs agree on: int 0x80, EAX = number, EBX and ECX = arguments, result in EAX. */
#pragma once
#include "../lib/cpu.h"

enum {
    SYSTEM_EXIT,            /* status */
    SYSTEM_FORK,            /* 0 in the child, its number in the parent */
    SYSTEM_WAIT,            /* u32 *status or 0; the number of a child that has ended */
    SYSTEM_KILL,            /* number of a child */
    SYSTEM_YIELD,
    SYSTEM_SLEEP,           /* ticks */
    SYSTEM_GETPID,
    SYSTEM_WRITE,           /* text, length */
    SYSTEM_HEAP,            /* change in bytes, whole pages; the old end */
    SYSTEM_TICKS,
    SYSTEM_TICKS_USED,      /* number of a child: what it was running at that many ticks */
    SYSTEM_TIME,            /* 64 bits in EDX:EAX */
    SYSTEM_PAGES_FREE,      /* or lent */
    SYSTEM_CHECK,           /* name, ok: a line of the report */
    SYSTEM_SHOW_ZEROS,      /* address and number of pages of the heap: map them now, in one batch */
    SYSTEM_NULL,            /* count: the cheapest request to the machine, so many times */
};

#define FAILED ((u32)-1)
#define KILLED 0x100u               /* a status: killed by another, or, plus the vector, by an exception */
#define KILLED_BY(vector) (KILLED + 1 + (vector))

/* What the first process does. */
enum { WORK_CHECKS, WORK_FORK, WORK_SWITCH, WORK_PTE, WORK_NULL, WORK_SLEEP };
