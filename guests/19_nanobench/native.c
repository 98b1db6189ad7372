/* On a PC: flat segments, two-level page tables that map everything to itself and one window, gates. */
#include "../lib/interrupts.h"
#include "../lib/irq.h"
#include "../lib/multiboot.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "../lib/segments.h"
#include "../lib/user.h"
#include "operations.h"

#define MAPPED 4                        /* tables: 16 MiB */
static volatile u32 directory[1024] PAGE_TABLE, tables[MAPPED][1024] PAGE_TABLE;
volatile u32 window_table[1024] PAGE_TABLE;
static u8 frames[3 * PAGE_SIZE] PAGE_TABLE;     /* two of them differ in one bit of their addresses */
extern char on_divide_error[], on_page_fault[], on_system_call[];

static void on_end(struct Frame *frame) { leave_user(frame->edi); }

static Operation run_syscall;
static u32 run_syscall(u32 count)
{
    static u8 stack[256];
    user_count = count;
    return run_user(user_loop, stack + sizeof stack, EFLAGS_FIXED);
}

/* CR0 is no affair of a port's. Only a machine that shows KVM's leaves has somebody to call. */
const struct Benchmark benchmarks[] = {
    { "null", run_null, false }, { "syscall", run_syscall, false }, { "in", run_in, false },
    { "cr0wr", run_cr0wr, true }, { "callret", run_callret, false }, { "pgfault", run_pgfault, false },
    { "divzero", run_divzero, false }, { "ptemod", run_ptemod, false }, { "clisti", run_clisti, false },
    { "cpuid", run_cpuid, false }, { "rdtsc", run_rdtsc, false }, { "hypercall", run_hypercall, true },
    { 0, 0, false },
};

void say(const char *name, bool ok) { report(name, ok); }

static void map(void)
{
    for (u32 page = 0; page < MAPPED * 1024; page++)
        tables[page / 1024][page % 1024] = page * PAGE_SIZE | PAGE_PRESENT | PAGE_WRITABLE | PAGE_USER;
    for (u32 table = 0; table < MAPPED; table++)
        directory[table] = (u32)tables[table] | PAGE_PRESENT | PAGE_WRITABLE | PAGE_USER;
    window_table[0] = (((u32)frames + PAGE_SIZE) & ~PAGE_SIZE) | PAGE_PRESENT | PAGE_WRITABLE;
    directory[WINDOW >> 22] = (u32)window_table | PAGE_PRESENT | PAGE_WRITABLE;
    write_cr3((u32)directory);
    write_cr0(read_cr0() | CR0_PG | CR0_WP);
    write32(WINDOW, 0);                 /* in use, so whoever keeps tables of his own has made them */
}

void main(const struct Multiboot *information)
{
    remap_pics();                       /* nobody interrupts */
    set_gate_target(DIVIDE_ERROR, INTERRUPT_GATE, KERNEL_CODE, (u32)on_divide_error);
    set_gate_target(PAGE_FAULT, INTERRUPT_GATE, KERNEL_CODE, (u32)on_page_fault);
    set_gate_target(0x80, INTERRUPT_GATE | FROM_USER, KERNEL_CODE, (u32)on_system_call);
    set_gate(0x81, INTERRUPT_GATE | FROM_USER);
    handle(0x81, on_end);
    map();
    nanobench(command_line(information));
}
