/* What the two machines share: the operations, and what the kernel needs said. */
#pragma once
#include "../lib/cpu.h"
#include "loops.h"

/* Does it `count` times; returns how often the machine has answered as it should. */
typedef u32 Operation(u32 count);
struct Benchmark { const char *name; Operation *run; bool special; };   /* special: only if asked for by name */
extern const struct Benchmark benchmarks[];     /* of this machine; ends with a name of 0 */

/* loops.S */
Operation run_callret, run_clisti, run_cpuid, run_cr0wr, run_divzero, run_in, run_null, run_pgfault, run_ptemod,
          run_rdtsc, run_hypercall;
extern char user_text[], user_text_end[];       /* the linker script: the loop of ring 3 */
extern volatile u32 user_count;                 /* the loop's argument, on the same page */
void user_loop(void);

/* What loops.S stores to and stumbles on: a window of 4 MiB with a page table of its own (native.c). */
#define WINDOW 0x40000000u
extern volatile u32 window_table[1024];

void nanobench(const char *command_line);       /* main.c */
void say(const char *name, bool ok);            /* PASS or FAIL and a name */
