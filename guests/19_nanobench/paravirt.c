/* As a domain of Xen: the hypervisor has made segments and page tables; what ring 0 would do is a request. Numbers and
 * layouts are those of Xen's public headers; 17_processes/xen.h has more of them, with words. */
#include "../abi/machine_map.h"
#include "../lib/paging.h"
#include "operations.h"

enum { SET_TRAP_TABLE = 0, MMU_UPDATE = 1, STACK_SWITCH = 3, UPDATE_VA_MAPPING = 14, SCHED_OP = 29,
       EVENT_CHANNEL_OP = 32, PHYSDEV_OP = 33 };
#define RING1_CODE 0xE019
#define RING1_DATA 0xE021
#define MYSELF 0x7FF0                   /* as the number of a domain */
#define INVLPG 2                        /* flag of UPDATE_VA_MAPPING */
#define BATCH 16                        /* changes of a page table in one request */

struct TrapInfo { u8 vector, flags; u16 cs; u32 address; };
struct MmuUpdate { u64 entry, value; };                 /* machine address of an entry of eight bytes */
struct StartInfo {
    char magic[32];
    u32 page_count, shared_info, flags, store_mfn, store_port, console_mfn, console_port;
    u32 top_table, table_pages, mfn_list, module, module_length;
    char command_line[1024];
};
#define CONSOLE_OUT 2048
struct Console { char in[1024], out[CONSOLE_OUT]; u32 in_taken, in_put, out_taken, out_put; };

extern char shared_info[], on_divide_error[], on_page_fault[], on_system_call[], on_end[], trap_stack_end[];
u32 hypercall(u32 number, u32 a, u32 b, u32 c, u32 d);
u32 enter_user(void);
static struct StartInfo *start_info;
static u32 *mfn_list;
static u8 frames[2][PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

static void insist(u32 result)
{
    if ((int)result < 0)
        say("the hypervisor does as it is asked", false);
}

static void *page_of(u32 mfn)
{
    u32 page = 0;
    while (mfn_list[page] != mfn)
        page++;
    return (void *)(page * PAGE_SIZE);
}

static u64 entry_for(u32 address, u32 bits) { return (u64)mfn_list[address / PAGE_SIZE] * PAGE_SIZE | bits; }

/* The machine address of the entry of level 1 or 2 that maps an address. */
static u64 entry_of(u32 address, u32 level)
{
    u64 *top = (u64 *)start_info->top_table, *directory = page_of(top[address >> 30] / PAGE_SIZE);
    u64 *entry = &directory[address >> 21 & 511];
    if (level == 1)
        entry = &((u64 *)page_of(*entry / PAGE_SIZE))[address >> 12 & 511];
    return entry_for((u32)entry, (u32)entry % PAGE_SIZE);
}

static void remap(u32 address, u64 value)
{
    insist(hypercall(UPDATE_VA_MAPPING, address, value, value >> 32, INVLPG));
}

static Operation run_syscall, run_batches;
static u32 run_syscall(u32 count)
{
    user_count = count;
    remap((u32)user_text, entry_for((u32)user_text, PAGE_PRESENT | PAGE_USER));
    u32 answered = enter_user();
    remap((u32)user_text, entry_for((u32)user_text, PAGE_PRESENT | PAGE_WRITABLE));
    return answered;
}

/* The entry of a page of ours, another frame each time; the requests are collected. */
static u32 run_batches(u32 count)
{
    static struct MmuUpdate requests[BATCH];
    u64 entry = entry_of((u32)frames[0], 1);
    u32 asked = 0, done = 0;
    for (u32 i = 0; i < count; i++) {
        requests[asked++] = (struct MmuUpdate){ entry, entry_for((u32)frames[(i + 1) % 2], PAGE_PRESENT) };
        if (asked == BATCH || i + 1 == count) {
            u32 made = 0;
            insist(hypercall(MMU_UPDATE, (u32)requests, asked, (u32)&made, MYSELF));
            done += made;
            asked = 0;
        }
    }
    return done;
}

const struct Benchmark benchmarks[] = {
    { "null", run_null, false }, { "syscall", run_syscall, false }, { "in", run_in, false },
    { "callret", run_callret, false }, { "pgfault", run_pgfault, false }, { "divzero", run_divzero, false },
    { "ptemod", run_batches, false }, { "clisti", run_clisti, false }, { "cpuid", run_cpuid, false },
    { "rdtsc", run_rdtsc, false }, { "hypercall", run_hypercall, true }, { 0, 0, false },
};

static u32 passed, failed;

static void write(const char *text)
{
    volatile struct Console *console = page_of(start_info->console_mfn);
    while (*text)
        console->out[console->out_put++ % CONSOLE_OUT] = *text++;
    hypercall(EVENT_CHANNEL_OP, 4, (u32)&start_info->console_port, 0, 0);      /* send */
}

void say(const char *name, bool ok)
{
    ok ? passed++ : failed++;
    write(ok ? "PASS " : "FAIL ");
    write(name);
    write("\n");
}

void start_domain(struct StartInfo *information)
{
    static struct TrapInfo traps[] = {
        { 0, 0, RING1_CODE, (u32)on_divide_error }, { 14, 0, RING1_CODE, (u32)on_page_fault },
        { 0x80, 3, RING1_CODE, (u32)on_system_call }, { 0x81, 3, RING1_CODE, (u32)on_end }, { 0, 0, 0, 0 },
    };
    u32 privilege = 1;
    start_info = information;
    mfn_list = (u32 *)information->mfn_list;
    remap((u32)shared_info, information->shared_info | PAGE_PRESENT | PAGE_WRITABLE);
    insist(hypercall(SET_TRAP_TABLE, (u32)traps, 0, 0, 0));
    insist(hypercall(STACK_SWITCH, RING1_DATA, (u32)trap_stack_end, 0, 0));
    insist(hypercall(PHYSDEV_OP, 6, (u32)&privilege, 0, 0));                    /* set IOPL: for the two ports */
    u64 *top = (u64 *)information->top_table, *directory = page_of(top[0] / PAGE_SIZE);
    struct MmuUpdate open = { entry_of((u32)user_text, 2), directory[(u32)user_text >> 21] | PAGE_USER };
    insist(hypercall(MMU_UPDATE, (u32)&open, 1, 0, MYSELF));
    nanobench(information->command_line);
    outb(DEBUG_EXIT_PORT, failed ? VERDICT_FAIL : VERDICT_PASS);
    u32 reason = 0;
    for (;;)
        hypercall(SCHED_OP, 2, (u32)&reason, 0, 0);                             /* shutdown */
}
