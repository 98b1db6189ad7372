/* Preemptive multitasking: two programs that never give up the CPU, and a timer that takes it away.
 * A task is nothing but a saved interrupt frame; switching is swapping frames. */
#include "../abi/machine_map.h"
#include "../lib/interrupts.h"
#include "../lib/irq.h"
#include "../lib/report.h"
#include "../lib/segments.h"
#include "../lib/string.h"
#include "../lib/user.h"

#define HERTZ 1000
#define SLICES 40
#define TASKS 2

struct Task {
    struct Frame frame;
    u8 stack[4096] __attribute__((aligned(16)));
};
static struct Task tasks[TASKS];
static u32 current, slices[TASKS], ticks;
static volatile u32 counters[TASKS], damaged;

/* ---- the programs, in ring 3: count, and see that nobody touched the registers ---- */

static __attribute__((noreturn)) void count(u32 number, u32 canary)
{
    asm volatile("1: incl (%0)\n"
                 "movl %1, %%ecx\n movl %1, %%edx\n movl %1, %%ebp\n"
                 "cmpl %1, %%ecx\n jne 2f\n cmpl %1, %%edx\n jne 2f\n cmpl %1, %%ebp\n jne 2f\n"
                 "cmpl %2, %1\n je 1b\n"
                 "2: incl damaged\n jmp 1b"
                 :: "b"(&counters[number]), "S"(canary), "D"(canary) : "eax", "ecx", "edx", "memory");
    __builtin_unreachable();
}

static void first_program(void) { count(0, 0x11111111); }
static void second_program(void) { count(1, 0x22222222); }

/* ---- the kernel ---- */

static void on_timer(struct Frame *frame)
{
    ticks++;
    end_of_interrupt(IRQ_TIMER);
    if (!(frame->cs & 3))
        return;                                 /* the kernel was idle */
    slices[current]++;
    if (ticks == SLICES)
        leave_user(0);
    tasks[current].frame = *frame;
    current = (current + 1) % TASKS;
    *frame = tasks[current].frame;
}

static void prepare(struct Task *task, void (*program)(void))
{
    task->frame.eip = (u32)program;
    task->frame.cs = USER_CODE;
    task->frame.eflags = EFLAGS_FIXED | EFLAGS_IF;
    task->frame.esp = (u32)task->stack + sizeof task->stack;
    task->frame.ss = USER_DATA;
}

void main(void)
{
    handle(IRQ_VECTOR + IRQ_TIMER, on_timer);
    remap_pics();
    start_pit(HERTZ);
    unmask_irq(IRQ_TIMER);

    /* The first task is entered by hand; the timer does the rest, until SLICES ticks have passed. */
    prepare(&tasks[1], second_program);
    run_user(first_program, tasks[0].stack + sizeof tasks[0].stack, EFLAGS_FIXED | EFLAGS_IF);
    print("after %u ticks both tasks have run\n", ticks);
    report("both tasks counted", counters[0] > 0 && counters[1] > 0);
    report("the timer shared the CPU fairly", slices[0] == SLICES / 2 && slices[1] == SLICES / 2);
    report("no task saw another's registers", damaged == 0);

    /* Nobody left to run: sleep. Each tick wakes us exactly once. */
    u32 before = ticks;
    for (u32 i = 0; i < 10; i++)
        wait_for_interrupt();
    report("HLT wakes once per tick", ticks - before == 10);

    /* A masked line stays silent, and CLI holds even an unmasked one back. */
    mask_irq(IRQ_TIMER);
    before = ticks;
    sti();
    for (volatile u32 i = 0; i < 100000; i++)
        ;
    cli();
    report("a masked line is silent", ticks == before);
}
