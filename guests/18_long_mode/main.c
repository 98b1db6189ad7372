/* A kernel of 64 bits: wide registers and addresses, gates of 16 bytes, stacks from a table, SYSCALL. */
#include "../abi/machine_map.h"
#include "../lib/irq.h"
#include "../lib/report.h"

#define KERNEL_CODE 0x08
#define USER_CODE_32 (0x18 | 3)
#define USER_DATA (0x20 | 3)
#define USER_CODE (0x28 | 3)
#define TASK 0x30

#define MSR_STAR 0xC0000081
#define MSR_LSTAR 0xC0000082
#define MSR_SFMASK 0xC0000084
#define MSR_FS_BASE 0xC0000100
#define MSR_KERNEL_GS_BASE 0xC0000102
#define EFER_LMA 0x400

#define DIVIDE_ERROR 0
#define INVALID_OPCODE 6
#define DOUBLE_FAULT 8
#define GENERAL_PROTECTION 13
#define PAGE_FAULT 14
#define TIMER IRQ_VECTOR
#define FROM_KERNEL_ONLY 0x41
#define SYSTEM_CALL 0x80

/* As entry.S pushes it, below what the CPU pushes (SDM volume 3A, figure 6-9) */
struct Frame {
    u64 rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
    u64 vector, error_code, rip, cs, rflags, rsp, ss;
};

struct Gate { u16 offset; u16 selector; u8 stack; u8 attributes; u16 middle; u32 upper; u32 reserved; };
struct __attribute__((packed)) TaskState {
    u32 reserved0; u64 rsp[3]; u64 reserved1; u64 stacks[7]; u64 reserved2; u16 reserved3; u16 io_map;
};

extern u64 gdt[], level4[512], spare_tables[4][512];
extern u8 vectors[][16], stack_top[], after_syscall[];
extern u8 user_system_calls[], user_interrupt[], user_forbidden[], user_privileged[], user_spin[], user_32[];
extern volatile u64 recovery_stack_pointer;
u64 run_user(u64 code, const u8 *rip, u64 rsp);
void leave_user(u64 value) __attribute__((noreturn));
bool attempt(u64 (*what)(u64), u64 argument, u64 *result);
void recover(void);
void misaligned_interrupt(void);
u64 fault_without_stack(u64 stack);
void system_call_entry(void);

static struct Gate gates[0x81];
static struct TaskState task;
static struct { u64 stack, user_stack; } cpu_memory;
static u8 inner_stack[8192] __attribute__((aligned(16)));
static u8 system_call_stack[8192] __attribute__((aligned(16)));
static u8 fault_stack[4096] __attribute__((aligned(16)));
static u8 user_stack[4096] __attribute__((aligned(16)));
static u8 page[4096] __attribute__((aligned(4096)));
static volatile u64 ticks, last_vector, last_error, last_rip, last_address, last_stack, last_cs, last_ss, last_frame;
static volatile u64 mend_page, end_after_ticks;

static u64 read_msr(u32 number)
{
    u32 low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
    return (u64)high << 32 | low;
}

static void write_msr(u32 number, u64 value)
{
    asm volatile("wrmsr" :: "c"(number), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static void set_gate(u32 vector, u32 ring, u32 stack)
{
    u64 entry = (u64)vectors[vector];
    gates[vector] = (struct Gate){ entry, KERNEL_CODE, stack, 0x8E | ring << 5, entry >> 16, entry >> 32, 0 };
}

/* Maps one page anywhere: three tables of its own. */
static void map(u64 linear, u64 physical, u64 bits)
{
    u64 *table = level4;
    for (int level = 0; level < 3; level++) {
        u64 *entry = &table[linear >> (39 - 9 * level) & 511];
        if (!(*entry & 1))
            *entry = (u64)spare_tables[level] | 7;
        table = (u64 *)(*entry & ~0xFFFull);
    }
    table[linear >> 12 & 511] = physical | bits;
    asm volatile("invlpg (%0)" :: "r"(linear) : "memory");
}

void interrupt(struct Frame *frame)
{
    if (frame->vector == TIMER) {
        ticks++;
        end_of_interrupt(0);
        if (end_after_ticks && ticks >= end_after_ticks && (frame->cs & 3)) {
            end_after_ticks = 0;
            leave_user(frame->rdx);
        }
        return;
    }
    last_vector = frame->vector;
    last_error = frame->error_code;
    last_rip = frame->rip;
    last_stack = frame->rsp;
    last_cs = frame->cs;
    last_ss = frame->ss;
    last_frame = (u64)(frame + 1);
    asm volatile("movq %%cr2, %0" : "=r"(*(u64 *)&last_address));
    if (frame->vector == PAGE_FAULT && mend_page) {
        map(last_address & ~0xFFFull, mend_page, 3);
        mend_page = 0;
        return;
    }
    if (frame->vector == SYSTEM_CALL)
        leave_user(frame->rdx);
    if (frame->vector == FROM_KERNEL_ONLY)
        return;
    if (frame->cs & 3)
        leave_user(0);
    if (recovery_stack_pointer) {
        frame->rip = (u64)recover;
        frame->rsp = recovery_stack_pointer;
        return;
    }
    print("unexpected vector %u\n", (u32)frame->vector);
    report("no other exception", false);
    finish();
}

static volatile u64 call_rip, call_flags, call_argument;

u64 system_call(u64 number, u64 argument, u64 rip, u64 flags)
{
    if (number == 2) {
        asm volatile("swapgs");
        leave_user(argument);
    }
    call_rip = rip;
    call_flags = flags;
    call_argument = argument;
    return argument + 0x22222222;
}

static u64 read_at(u64 address) { return *(volatile u64 *)address; }
static u64 call_at(u64 address) { ((void (*)(void))address)(); return 0; }
static u64 divide(u64 divisor)
{
    u64 low = 100, high = 7;
    asm volatile("divq %2" : "+a"(low), "+d"(high) : "r"(divisor));
    return low;
}

static bool faults(u64 (*what)(u64), u64 argument, u64 vector, u64 error)
{
    u64 result;
    last_vector = ~0ull;
    return !attempt(what, argument, &result) && last_vector == vector && last_error == error;
}

static u64 in_ring_3(u64 code, const u8 *program)
{
    return run_user(code, program, (u64)user_stack + sizeof user_stack);
}

static void prepare(void)
{
    for (u32 vector = 0; vector < 0x81; vector++)
        set_gate(vector, vector == SYSTEM_CALL ? 3 : 0, vector == DOUBLE_FAULT ? 1 : 0);
    struct __attribute__((packed)) { u16 limit; u64 base; } table = { sizeof gates - 1, (u64)gates };
    asm volatile("lidt %0" :: "m"(table));
    task.rsp[0] = (u64)inner_stack + sizeof inner_stack;
    task.stacks[0] = (u64)fault_stack + sizeof fault_stack;
    task.io_map = sizeof task;
    u64 base = (u64)&task;
    gdt[TASK / 8] = (sizeof task - 1) | (base & 0xFFFFFF) << 16 | 0x89ull << 40 | (base >> 24 & 0xFF) << 56;
    gdt[TASK / 8 + 1] = base >> 32;
    asm volatile("ltr %w0" :: "r"(TASK));
    cpu_memory.stack = (u64)system_call_stack + sizeof system_call_stack;
    write_msr(MSR_STAR, (u64)KERNEL_CODE << 32 | (u64)USER_CODE_32 << 48);
    write_msr(MSR_LSTAR, (u64)system_call_entry);
    write_msr(MSR_SFMASK, 0x701);       /* CF, TF, IF and DF */
    write_msr(MSR_KERNEL_GS_BASE, (u64)&cpu_memory);
    remap_pics();
}

static void wide(void)
{
    u64 sum = 0x7FFFFFFFFFFFFFFF, eight = 0, low;
    report("EFER.LMA: the CPU is in long mode", read_msr(MSR_EFER) & EFER_LMA);
    asm volatile("movq %2, %%r8; addq $1, %%r8; movq %%r8, %0; movl %%r8d, %%r9d; movq %%r9, %1"
                 : "=r"(eight), "=r"(low) : "r"(sum) : "r8", "r9");
    report("R8 holds 64 bits, and R9D clears its upper half", eight == 1ull << 63 && low == 0);
    page[0] = 7;
    map(0x123456789000, (u64)page, 3);
    *(volatile u64 *)0x123456789008 = 0x1122334455667788;
    report("a page at 0x123456789000", read_at(0x123456789000) == 7 && *(u64 *)(page + 8) == 0x1122334455667788);
    write_msr(MSR_FS_BASE, 0x123456789000);
    u64 value;
    asm volatile("movq %%fs:8, %0" : "=r"(value));
    report("FS has a base of 64 bits", value == 0x1122334455667788);
    asm volatile("movq %1, %%cr8; movq %%cr8, %0" : "=r"(value) : "r"(5ull));
    asm volatile("movq %0, %%cr8" :: "r"(0ull));
    report("CR8 is the task priority", value == 5);
}

static void exceptions(void)
{
    u64 result;
    mend_page = (u64)page;
    report("#PF mended and tried again",
           attempt(read_at, 0x7FFFFFFFF008, &result) && result == 0x1122334455667788 && last_vector == PAGE_FAULT);
    report("CR2 above 4 GiB", last_address == 0x7FFFFFFFF008 && last_error == 0);
    report("#PF in the upper half", faults(read_at, 0xFFFF800000001000, PAGE_FAULT, 0)
           && last_address == 0xFFFF800000001000);
    map(0x123456789000, (u64)page, 3 | 1ull << 63);
    report("NX: data, not code", read_at(0x123456789000) == 7 && faults(call_at, 0x123456789000, PAGE_FAULT, 0x11)
           && last_rip == 0x123456789000);
    report("#DE by a quadword", faults(divide, 0, DIVIDE_ERROR, 0) && faults(divide, 7, DIVIDE_ERROR, 0)
           && attempt(divide, 8, &result) && result == 0xE00000000000000C);
    report("#GP for an address that is not canonical", faults(read_at, 0x800000000000, GENERAL_PROTECTION, 0));
    misaligned_interrupt();
    report("a frame is aligned to 16 bytes, and has SS and RSP always",
           last_frame % 16 == 0 && last_stack % 16 == 1 && last_stack - last_frame < 16 && last_ss == 0x10);
    report("#DF has a stack of its own", faults(fault_without_stack, 0x700000000000, DOUBLE_FAULT, 0)
           && last_frame == task.stacks[0] && last_stack == 0x700000000000 && last_address == 0x6FFFFFFFFFF8);
}

static void ring_3(void)
{
    report("SYSCALL and SYSRET", in_ring_3(USER_CODE, user_system_calls) == 0x1111111122222223);
    report("RCX is the way back, R11 the flags",
           call_rip == (u64)after_syscall && (call_flags & 0x201) == 0x201 && call_argument == 0x1111111100000000);
    report("INT 80h from ring 3", in_ring_3(USER_CODE, user_interrupt) == 0x5555555500000001 && last_cs == USER_CODE
           && last_ss == USER_DATA && last_stack == (u64)user_stack + sizeof user_stack
           && last_frame == task.rsp[0]);
    report("INT 41h is refused", in_ring_3(USER_CODE, user_forbidden) == 0 && last_vector == GENERAL_PROTECTION
           && last_rip == (u64)user_forbidden);
    report("CLI is refused", in_ring_3(USER_CODE, user_privileged) == 0 && last_vector == GENERAL_PROTECTION
           && last_rip == (u64)user_privileged);
    last_cs = 0;
    report("32-bit code in ring 3", in_ring_3(USER_CODE_32, user_32) == 0 && last_cs == USER_CODE_32);
}

static void timer(void)
{
    start_pit(1000);
    unmask_irq(0);
    ticks = 0;
    while (ticks < 3)
        wait_for_interrupt();
    report("HLT wakes for the timer", ticks == 3);
    end_after_ticks = ticks + 3;
    report("the timer ends a program that never would", in_ring_3(USER_CODE, user_spin) > 0);
    mask_irq(0);
}

void main(void)
{
    prepare();
    wide();
    exceptions();
    ring_3();
    timer();
}
