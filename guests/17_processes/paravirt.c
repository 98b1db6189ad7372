/* The machine is a domain of Xen, and we are in ring 1: a page table is written by asking, and so is everything else
 * that others could suffer from. Page-table entries hold numbers of machine pages (MFNs), mfn_list says which. */
#include "../abi/machine_map.h"
#include "kernel.h"
#include "paravirt.h"

const u32 user_code_selector = RING3_CODE, user_data_selector = RING3_DATA;

extern char hypercall_page[], vectors_of_traps[][16], on_system_call[], on_event[], on_failsafe[];
extern struct SharedInfo shared_info;           /* a page of ours, whose place theirs takes */
static volatile struct SharedInfo *const shared = &shared_info;
struct StartInfo *start_info;
u32 *mfn_list;

/* ---- asking ---- */

static u32 hypercall(u32 number, u32 a, u32 b, u32 c, u32 d)
{
    u32 result;
    asm volatile("call *%%eax" : "=a"(result), "+b"(a), "+c"(b), "+d"(c), "+S"(d)
                 : "0"(hypercall_page + 32 * number) : "cc", "memory");
    return result;
}

void insist(bool ok)
{
    if (!ok) {
        check("the hypervisor does as it is asked", false);
        verdict();
    }
}

/* One entrance for one call or several; none of ours may fail. */
static void perform(struct Call *calls, u32 count)
{
    const u32 *with = calls->arguments;
    u32 result = 0;
    if (count == 1)
        result = calls->result = hypercall(calls->number, with[0], with[1], with[2], with[3]);
    else if (count)
        result = hypercall(MULTICALL, (u32)calls, count, 0, 0);
    for (u32 i = 0; i < count; i++)
        result = (int)result < 0 ? result : calls[i].result;
    insist((int)result >= 0);
}

u32 ask(u32 number, u32 a, u32 b, u32 c, u32 d)
{
    struct Call call = { number, 0, { a, b, c, d } };
    perform(&call, 1);
    return call.result;
}

/* ---- page tables: requests are collected, and made in one entrance ---- */

static struct MmuUpdate requests[REQUESTS];
static struct MmuExtended operations[3];
static u32 request_count, operation_count;
static bool stale;                              /* of a page that was a table, a read-only translation may be left */
static u64 *tables[KERNEL_END / PAGE_SIZE / ENTRIES];   /* of the kernel */

u32 page_of(u32 mfn)
{
    u32 page = 0;
    while (mfn_list[page] != mfn)
        page++;
    return page;
}

u64 pte_value(u32 page, u32 bits) { return (u64)mfn_list[page] << PAGE_SHIFT | bits; }

void pte_set(u64 *entry, u64 value)
{
    u32 address = (u32)entry;
    if (request_count == REQUESTS) {
        ask(MMU_UPDATE, (u32)requests, request_count, 0, MYSELF);
        request_count = 0;
    }
    requests[request_count++] = (struct MmuUpdate){ pte_value(address >> PAGE_SHIFT, address % PAGE_SIZE), value };
}

static void operate(u32 command, u32 operand)
{
    operations[operation_count++] = (struct MmuExtended){ command, operand, 0 };
}

void pte_commit(u32 flush)
{
    struct Call calls[2];
    u32 count = 0;
    if (stale || flush == FLUSH_EVERYTHING)
        operate(EXT_TLB_FLUSH_LOCAL, 0);
    else if (flush != FLUSH_NOTHING)
        operate(EXT_INVLPG_LOCAL, flush);
    if (request_count)
        calls[count++] = (struct Call){ MMU_UPDATE, 0, { (u32)requests, request_count, 0, MYSELF } };
    if (operation_count)
        calls[count++] = (struct Call){ MMUEXT_OP, 0, { (u32)operations, operation_count, 0, MYSELF } };
    perform(calls, count);
    request_count = operation_count = stale = 0;
}

u64 *own_entry(u32 page) { return tables[page / ENTRIES] + page % ENTRIES; }
void set_own(u32 page, u32 bits) { pte_set(own_entry(page), pte_value(page, bits)); }

/* A table is one that nobody can write to, us included. */
void table_make(u32 page) { set_own(page, PAGE_PRESENT); }
void table_drop(u32 page) { set_own(page, PAGE_PRESENT | PAGE_WRITABLE), stale = true; }

/* A pinned table stays checked while nobody uses it, so that a switch needs no check. */
void space_make(u32 top) { operate(EXT_PIN_L3_TABLE, mfn_list[top]); }
void space_drop(u32 top)
{
    struct MmuExtended unpin = { EXT_UNPIN_TABLE, mfn_list[top], 0 };
    ask(MMUEXT_OP, (u32)&unpin, 1, 0, MYSELF);
}

void machine_switch(u32 top, u32 stack_end)
{
    struct MmuExtended load = { EXT_NEW_BASEPTR, mfn_list[top], 0 };
    struct Call calls[] = { { STACK_SWITCH, 0, { RING1_DATA, stack_end } },
                            { MMUEXT_OP, 0, { (u32)&load, 1, 0, MYSELF } } };
    perform(calls, 2);
}

/* The hypervisor has mapped our first megabytes and made the tables read-only; the rest is for us to map. */
u32 machine_map(u32 end_page)
{
    u64 *top = (u64 *)start_info->top_table, *directory = page_address(page_of(top[0] >> PAGE_SHIFT));
    for (u32 t = 0; t * ENTRIES < end_page; t++) {
        u64 entry = directory[t];
        if (entry & PAGE_PRESENT) {
            tables[t] = page_address(page_of(entry >> PAGE_SHIFT));
        } else {
            u32 page = page_get();
            tables[t] = page_address(page);
            for (u32 i = 0, at = t * ENTRIES; i < ENTRIES; i++, at++)
                tables[t][i] = at < end_page ? pte_value(at, PAGE_PRESENT | PAGE_WRITABLE) : 0;
            table_make(page);
            entry = pte_value(page, PAGE_PRESENT | PAGE_WRITABLE);
        }
        pte_set(&directory[t], entry | PAGE_USER);
    }
    for (u32 page = 0; page < end_page; page++)
        if (kernel_page_bits(page) & PAGE_USER)
            set_own(page, kernel_page_bits(page));
    pte_commit(FLUSH_EVERYTHING);
    return start_info->top_table >> PAGE_SHIFT;
}

/* ---- time: no ticks, but a clock and an alarm ---- */

#define TICK (1000000000u / TICKS_PER_SECOND)
static u64 next_tick;
static u32 timer_port;

u64 machine_time(void)
{
    volatile struct TimeInfo *time = &shared->vcpu[0].time;
    u64 now;
    u32 version;
    do {
        version = time->version;
        u64 passed = rdtsc() - time->timestamp;
        passed = time->shift < 0 ? passed >> -time->shift : passed << time->shift;
        now = time->system_time + (passed >> 32) * time->multiplier + ((u64)(u32)passed * time->multiplier >> 32);
    } while (version & 1 || version != time->version);
    return now;
}

static void set_alarm(void) { ask(SET_TIMER_OP, next_tick, next_tick >> 32, 0, 0); }

void machine_start_clock(void)
{
    struct { u32 virq, vcpu, port; } bind = { VIRQ_TIMER, 0, 0 };
    ask(EVENT_CHANNEL_OP, EVENT_BIND_VIRQ, (u32)&bind, 0, 0);
    timer_port = bind.port;
    ask(EVENT_CHANNEL_OP, EVENT_UNMASK, (u32)&timer_port, 0, 0);
    next_tick = machine_time() + TICK;
    set_alarm();
}

/* ---- in: called by paravirt.S with events masked ---- */

static bool happened(u32 port)
{
    u32 bit = 1u << port % 32;
    return __atomic_fetch_and(&shared->pending[port / 32], ~bit, __ATOMIC_SEQ_CST) & bit;
}

void event(struct Frame *frame)
{
    u32 ticks = 0;
    shared->vcpu[0].pending = 0;
    shared->vcpu[0].pending_words = 0;          /* only these two ports are unmasked */
    if (happened(start_info->store_port))
        balloon_event();
    if (happened(timer_port)) {
        for (u64 now = machine_time(); next_tick <= now; next_tick += TICK)
            ticks++;
        set_alarm();
    }
    if (ticks) {
        balloon_tick();
        kernel_ticks(frame, ticks);             /* may come back much later */
    }
}

void trap(struct Frame *frame)
{
    kernel_trap(frame, shared->vcpu[0].cr2);
}

#define EXCEPTIONS 20
void paravirt_start(struct StartInfo *information, u32 stack)
{
    static struct TrapInfo traps[EXCEPTIONS + 2];
    u32 iopl = 1;
    start_info = information;
    mfn_list = (u32 *)information->mfn_list;
    ask(UPDATE_VA_MAPPING, (u32)&shared_info, information->shared_info | PAGE_PRESENT | PAGE_WRITABLE, 0,
        MAPPING_INVLPG);
    for (u32 word = 0; word < 32; word++)
        shared->mask[word] = ~0u;
    for (u32 vector = 0; vector < EXCEPTIONS; vector++)
        traps[vector] = (struct TrapInfo){ vector, TRAP_MASKS_EVENTS, RING1_CODE, (u32)vectors_of_traps[vector] };
    traps[EXCEPTIONS] = (struct TrapInfo){ 0x80, TRAP_MASKS_EVENTS | 3, RING1_CODE, (u32)on_system_call };
    ask(SET_TRAP_TABLE, (u32)traps, 0, 0, 0);
    ask(SET_CALLBACKS, RING1_CODE, (u32)on_event, RING1_CODE, (u32)on_failsafe);
    ask(PHYSDEV_OP, PHYSDEV_SET_IOPL, (u32)&iopl, 0, 0);        /* for the verdict's port */
    balloon_start();
    kernel(information->command_line, (stack + PAGE_SIZE - 1) >> PAGE_SHIFT, information->page_count);
}

/* ---- out ---- */

void machine_write(const char *text, u32 length)
{
    static volatile struct Console *console;
    if (!console)
        console = page_address(page_of(start_info->console_mfn));
    while (length) {
        for (; length && console->out_put - console->out_taken < CONSOLE_OUT; length--) {
            console->out[console->out_put % CONSOLE_OUT] = *text++;
            console->out_put++;
        }
        hypercall(EVENT_CHANNEL_OP, EVENT_SEND, (u32)&start_info->console_port, 0, 0);
        if (length)
            hypercall(SCHED_OP, SCHED_YIELD, 0, 0, 0);
    }
}

void machine_end(u8 verdict)
{
    u32 reason = 0;
    outb(DEBUG_EXIT_PORT, verdict);
    for (;;)
        hypercall(SCHED_OP, SCHED_SHUTDOWN, (u32)&reason, 0, 0);
}

void machine_idle(void)
{
    ask(SCHED_OP, SCHED_BLOCK, 0, 0, 0);        /* this unmasks */
    shared->vcpu[0].mask = 1;
}

void machine_null(void) { ask(XEN_VERSION, 0, 0, 0, 0); }
