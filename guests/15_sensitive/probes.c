/* The 18 instructions that Intel's architecture lets an unprivileged kernel execute without a trap although they read
 * or write the state of the machine (Robin and Irvine, USENIX Security 2000; SDM volume 2 for each). */
#include "probes.h"
#include "../abi/machine_map.h"
#include "../lib/irq.h"
#include "../lib/segments.h"
#include "scene.h"

#define TEXT_OF(value) #value
#define TEXT(value) TEXT_OF(value)

/* Changes AL and no flag */
#define MARK(value) "movb $" TEXT(value) ", %%al\n outb %%al, $" TEXT(POST_PORT) "\n"

/* The one instruction between its marks. A fault goes on behind it, by note_exception(). */
#define WATCH(instruction)                                                                                           \
    "movl $1f, attempt_at\n movl $2f, attempt_next\n" MARK(MARK_BEFORE) "1: " instruction "\n2: " MARK(MARK_AFTER)

/* An instruction that pushes or pops may fault before it did: EDX remembers ESP. */
#define KEEP_STACK "movl %%esp, %%edx\n"
#define RESTORE_STACK "movl %%edx, %%esp\n"

bool in_user_mode;
struct Seen seen[16];
u32 seen_count;

static void note(const char *subject, const char *name, u32 value, bool hexadecimal)
{
    if (seen_count < sizeof seen / sizeof *seen)
        seen[seen_count++] = (struct Seen){ subject, name, value, hexadecimal };
}

static void saw(const char *subject, const char *name, u32 value) { note(subject, name, value, true); }
static void saw_number(const char *subject, const char *name, u32 value) { note(subject, name, value, false); }

/* Whether the instruction was executed; if not, its fault is what we saw. */
static bool survived(const char *subject)
{
    if (!caught.count)
        return true;
    saw_number(subject, "fault", caught.vector);
    saw(subject, "code", caught.error);
    caught.count = 0;
    return false;
}

static u16 own_code(void) { return in_user_mode ? USER_CODE : KERNEL_CODE; }
static u16 own_data(void) { return in_user_mode ? USER_DATA : KERNEL_DATA; }
static u16 own_alias(void) { return in_user_mode ? USER_ALIAS : KERNEL_ALIAS; }
static u16 own_window(void) { return in_user_mode ? USER_WINDOW : KERNEL_WINDOW; }

/* ---- sensitive registers ---- */

struct TableRegister { u16 limit; u32 base; } __attribute__((packed));

static void saw_table(const struct TableRegister *table)
{
    if (survived("")) {
        saw("", "limit", table->limit);
        saw("", "base", table->base);
    }
}

void probe_sgdt(void)
{
    struct TableRegister table = { 0, 0 };
    asm volatile(WATCH("sgdt %0") : "=m"(table) :: "eax", "memory");
    saw_table(&table);
}

void probe_sidt(void)
{
    struct TableRegister table = { 0, 0 };
    asm volatile(WATCH("sidt %0") : "=m"(table) :: "eax", "memory");
    saw_table(&table);
}

void probe_sldt(void)
{
    u32 selector = 0;
    asm volatile(WATCH("sldtw %w0") : "+c"(selector) :: "eax", "memory");
    if (survived(""))
        saw("", "selector", selector);
}

void probe_str(void)
{
    u32 selector = 0;
    asm volatile(WATCH("strw %w0") : "+c"(selector) :: "eax", "memory");
    if (survived(""))
        saw("", "selector", selector);
}

void probe_smsw(void)
{
    /* The documented result is CR0's lower half; CPUs store all of it, PG and WP included. */
    u32 word = 0;
    asm volatile(WATCH("smswl %0") : "+c"(word) :: "eax", "memory");
    if (survived("")) {
        saw_number("", "protected", word & 1);
        saw_number("", "numeric_error", word >> 5 & 1);
        saw_number("", "paging", word >> 31);
        saw_number("", "wp", (word & CR0_WP) != 0);
    }
}

void probe_pushf(void)
{
    u32 flags;
    asm volatile(KEEP_STACK WATCH("pushfl") "popl %0\n" RESTORE_STACK : "=c"(flags) :: "eax", "edx", "memory");
    if (survived("")) {
        saw_number("", "if", (flags & EFLAGS_IF) != 0);
        saw_number("", "iopl", flags >> 12 & 3);
    }
}

/* ---- POPF, and whether interrupts come ---- */

#define PIC_READ_REQUESTS 0b00001010    /* OCW3: the next read of the command port gives IRR */
#define HERTZ 10000
static volatile bool arrived;

void on_timer(struct Frame *frame)
{
    (void)frame;
    arrived = true;
    mask_irq(IRQ_TIMER);
    end_of_interrupt(IRQ_TIMER);
}

/* Line 7 without a request is "there was something, but it is gone", and wants no end of interrupt. */
void on_spurious(struct Frame *frame) { (void)frame; }

/* The honest way to see IF: have the timer ask, and see whether we are interrupted. */
static bool interrupts_come(void)
{
    arrived = false;
    start_pit(HERTZ);
    unmask_irq(IRQ_TIMER);
    outb(PIC_MASTER, PIC_READ_REQUESTS);
    u32 asking = 0;
    for (u32 i = 0; i < 10000000 && asking < 100 && !arrived; i++)
        asking += inb(PIC_MASTER) & 1 << IRQ_TIMER;
    bool came = arrived;
    mask_irq(IRQ_TIMER);
    return came;
}

void probe_popf(void)
{
    asm volatile(KEEP_STACK "pushl %0\n" WATCH("popfl") RESTORE_STACK
                 :: "r"(EFLAGS_FIXED | EFLAGS_IF) : "eax", "edx", "cc", "memory");
    if (survived(""))
        saw_number("", "interrupted", interrupts_come());
}

/* ---- references to the protection system: descriptors ---- */

/* ZF says whether the descriptor may be seen; `result` keeps its value if not. */
#define ASK(instruction, selector, result, zf)                                                                       \
    asm volatile(WATCH(instruction) "sete %%cl\n movzbl %%cl, %%ecx"                                                 \
                 : "=c"(zf), "+d"(result) : "0"(selector) : "eax", "cc", "memory")

struct Asked { u16 selector; const char *name; };
#define EACH(asked, table)                                                                                           \
    for (const struct Asked *asked = table; asked < table + sizeof table / sizeof *table; asked++)

static const struct Asked described[] = {
    { KERNEL_CODE, "kernel" }, { USER_CODE, "user" }, { OUR_TSS, "tss" }, { OUR_LDT, "ldt" },
};
static const struct Asked verified[] = {
    { KERNEL_CODE, "kernel_code" }, { KERNEL_DATA, "kernel_data" }, { USER_CODE, "user_code" },
    { USER_DATA, "user_data" }, { OUR_TSS, "tss" },
};

#define LAR_MASK 0x00F0FF00             /* the limit's upper bits are undefined in the result */

static void saw_answer(const char *subject, u32 zf, const char *name, u32 result)
{
    if (!survived(subject))
        return;
    saw_number(subject, "zf", zf);
    if (zf && *name)
        saw(subject, name, result);
}

void probe_lar(void)
{
    EACH(asked, described) {
        u32 zf, rights = 0;
        ASK("larl %%ecx, %%edx", (u32)asked->selector, rights, zf);
        saw_answer(asked->name, zf, "rights", rights & LAR_MASK);
    }
}

void probe_lsl(void)
{
    EACH(asked, described) {
        u32 zf, limit = 0;
        ASK("lsll %%ecx, %%edx", (u32)asked->selector, limit, zf);
        saw_answer(asked->name, zf, "limit", limit);
    }
}

void probe_verr(void)
{
    EACH(asked, verified) {
        u32 zf, nothing = 0;
        ASK("verr %%cx", (u32)asked->selector, nothing, zf);
        saw_answer(asked->name, zf, "", nothing);
    }
}

void probe_verw(void)
{
    EACH(asked, verified) {
        u32 zf, nothing = 0;
        ASK("verw %%cx", (u32)asked->selector, nothing, zf);
        saw_answer(asked->name, zf, "", nothing);
    }
}

/* ---- references to the protection system: segment registers ---- */

#define PUSH(segment)                                                                                                \
    do {                                                                                                             \
        u32 selector;                                                                                                \
        asm volatile(KEEP_STACK WATCH("pushl %%" #segment) "popl %0\n" RESTORE_STACK                                 \
                     : "=c"(selector) :: "eax", "edx", "memory");                                                    \
        if (survived(#segment))                                                                                      \
            saw("", #segment, selector & 0xFFFF);                                                                    \
    } while (0)

void probe_push(void)
{
    PUSH(cs);
    PUSH(ss);
    PUSH(ds);
}

#define READ_SEGMENT(segment)                                                                                        \
    do {                                                                                                             \
        u32 selector = 0;                                                                                            \
        asm volatile(WATCH("movw %%" #segment ", %w0") : "+c"(selector) :: "eax", "memory");                         \
        if (survived(#segment))                                                                                      \
            saw("", #segment, selector);                                                                             \
    } while (0)

/* A loaded segment is looked through, not read back: its base tells whether it is the one that was asked for. */
#define SEE_THROUGH(segment, address)                                                                                \
    do {                                                                                                             \
        u32 word;                                                                                                    \
        asm volatile("movl %%" #segment ":(%1), %0" : "=r"(word) : "r"(address) : "memory");                         \
        saw(#segment, "word", word);                                                                                 \
    } while (0)

#define LOAD_BY_MOV(segment, selector)                                                                               \
    asm volatile(WATCH("movw %w0, %%" #segment) :: "c"((u32)(selector)) : "eax", "memory")
#define LOAD_BY_POP(segment, selector)                                                                               \
    asm volatile(KEEP_STACK "pushl %0\n" WATCH("popl %%" #segment) RESTORE_STACK                                     \
                 :: "c"((u32)(selector)) : "eax", "edx", "memory")

#define LOAD_SEGMENTS(load)                                                                                          \
    do {                                                                                                             \
        load(fs, own_window());                                                                                      \
        if (survived("fs"))                                                                                          \
            SEE_THROUGH(fs, 0);                                                                                      \
        load(ss, own_data());                                                                                        \
        if (survived("ss"))                                                                                          \
            SEE_THROUGH(ss, WINDOW_AT);                                                                              \
        if (in_user_mode) {                                                                                          \
            load(fs, KERNEL_WINDOW);                                                                                 \
            if (survived("kernel"))                                                                                  \
                saw_number("kernel", "loaded", 1);                                                                   \
        }                                                                                                            \
        asm volatile("movw %w0, %%fs" :: "r"(own_data()));                                                           \
    } while (0)

void probe_pop(void)
{
    LOAD_SEGMENTS(LOAD_BY_POP);
}

void probe_mov(void)
{
    READ_SEGMENT(cs);
    READ_SEGMENT(ss);
    READ_SEGMENT(ds);
    LOAD_SEGMENTS(LOAD_BY_MOV);
}

/* ---- references to the protection system: control transfers ---- */

/* Shared with landings.S */
struct FarPointer { u32 offset; u16 selector; } __attribute__((packed));
struct FarPointer there, way_back;
volatile u32 pushed_eip, pushed_cs, running_cs, transferred;

/* A transfer that comes back has written its second mark; one that faulted writes it here. */
#define TRANSFER(setup, instruction)                                                                                 \
    asm volatile("movl $1f, attempt_at\n movl $2f, attempt_next\n movl $2f, way_back\n" KEEP_STACK setup             \
                 MARK(MARK_BEFORE) "1: " instruction "\n2: " RESTORE_STACK                                           \
                 "testl $-1, transferred\n jnz 3f\n" MARK(MARK_AFTER) "3:"                                           \
                 ::: "eax", "edx", "cc", "memory")

static void aim(u16 selector, const char *offset)
{
    transferred = pushed_cs = running_cs = 0;
    there = (struct FarPointer){ (u32)offset, selector };
    way_back.selector = own_code();
}

static bool saw_transfer(const char *subject)
{
    if (!survived(subject))
        return false;
    saw_number(subject, "arrived", transferred);
    saw(subject, "cs", running_cs);
    return true;
}

static void saw_frame(const char *subject)
{
    saw(subject, "pushed_cs", pushed_cs);
    saw_number(subject, "returned", pushed_eip == attempt_next);
}

void probe_call(void)
{
    aim(own_alias(), call_landing);
    TRANSFER("", "lcall *there");
    if (saw_transfer(""))
        saw_frame("");
    if (!in_user_mode)
        return;
    aim(USER_CALL_GATE, 0);
    TRANSFER("", "lcall *there");
    if (saw_transfer("gate"))
        saw_frame("gate");
    aim(KERNEL_CODE, call_landing);
    TRANSFER("", "lcall *there");
    saw_transfer("kernel");
}

void probe_jmp(void)
{
    aim(own_alias(), jmp_landing);
    TRANSFER("", "ljmp *there");
    saw_transfer("");
    if (!in_user_mode)
        return;
    aim(KERNEL_CODE, jmp_landing);
    TRANSFER("", "ljmp *there");
    saw_transfer("kernel");
}

#define PUSH_THERE "movzwl there + 4, %%eax\n pushl %%eax\n pushl there\n"

void probe_ret(void)
{
    aim(own_alias(), jmp_landing);
    TRANSFER(PUSH_THERE, "lret");
    saw_transfer("");
    if (!in_user_mode)
        return;
    aim(KERNEL_CODE, jmp_landing);
    TRANSFER(PUSH_THERE, "lret");
    saw_transfer("kernel");
}

void probe_int(void)
{
    aim(0, 0);
    TRANSFER("", "int $" TEXT(LANDING));
    if (saw_transfer(""))
        saw_frame("");
    if (!in_user_mode)
        return;
    aim(0, 0);
    TRANSFER("", "int $" TEXT(KERNEL_LANDING));
    saw_transfer("kernel");
}
