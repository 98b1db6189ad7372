/* Processes. Each has a page as its stack in the kernel, on which it is interrupted, and on which it stands while
 * others run. Process 0 is the kernel's start; it runs when nobody else can. */
#include "../lib/string.h"
#include "kernel.h"
#include "system_calls.h"

#define PROCESSES 64

static struct Process processes[PROCESSES];
struct Process *current = &processes[0];
static u32 numbers, ticks;

/* Saves the registers that C keeps and the stack pointer, and loads another's (switch.S). */
void swap_stacks(u32 *save, u32 load);

/* ---- the scheduler: round robin ---- */

static void schedule(void)
{
    struct Process *before = current, *next = current;
    do {
        if (++next == processes + PROCESSES)
            next = processes;
    } while (next->state != READY && next != before);
    if (next->state != READY)
        next = processes;
    if (next == before)
        return;
    current = next;
    machine_switch(next->space.top, (u32)page_address(next->stack_page + 1));
    swap_stacks(&before->stack_pointer, next->stack_pointer);
}

void process_yield(void)
{
    schedule();
}

void kernel_ticks(struct Frame *frame, u32 count)
{
    ticks += count;
    for (struct Process *p = processes; p < processes + PROCESSES; p++)
        if (p->state == SLEEPING && (int)(ticks - p->wake_at) >= 0)
            p->state = READY;
    if ((frame->cs & 3) == 3) {
        current->ticks_used += count;
        schedule();
    }
}

u32 ticks_now(void)
{
    return ticks;
}

void process_sleep(u32 count)
{
    current->wake_at = ticks + count;
    current->state = SLEEPING;
    schedule();
}

/* ---- birth ---- */

/* A slot and a stack. The new process will begin at frame_resume, with the frame that the caller writes. */
static struct Process *create(struct Frame **frame)
{
    struct Process *p = processes + 1;
    while (p->state != UNUSED)
        if (++p == processes + PROCESSES)
            return 0;
    u32 page = page_get();
    if (!page)
        return 0;
    memset(p, 0, sizeof *p);
    p->stack_page = page;
    *frame = (struct Frame *)page_address(page + 1) - 1;
    u32 *stack = (u32 *)*frame;
    *--stack = (u32)frame_resume;
    stack -= 4;                         /* what swap_stacks will pop: nobody's registers */
    p->stack_pointer = (u32)stack;
    return p;
}

static void start(struct Process *p)
{
    p->number = ++numbers;
    p->parent = current;
    p->state = READY;
}

int process_fork(const struct Frame *frame)
{
    struct Frame *copy;
    struct Process *child = create(&copy);
    if (!child)
        return -1;
    if (!space_copy(&child->space, &current->space)) {
        page_put(child->stack_page);
        return -1;
    }
    *copy = *frame;
    copy->eax = 0;
    start(child);
    return child->number;
}

void processes_run(u32 program, u32 kind, u32 count)
{
    struct Frame *frame;
    processes[0].space = kernel_space;
    struct Process *p = create(&frame);
    if (!p || !space_new(&p->space)) {
        check("there is memory for the first process", false);
        verdict();
    }
    *frame = (struct Frame){ .eax = kind, .edx = count, .eip = program, .cs = user_code_selector,
                             .eflags = EFLAGS_FIXED | EFLAGS_IF, .esp = STACK_END, .ss = user_data_selector };
    start(p);
    for (;;) {
        schedule();
        machine_idle();
    }
}

/* ---- death ---- */

/* What a process had is freed when its parent has heard of its end: it may be standing on it. */
static void end(struct Process *p, u32 status)
{
    if (p->number == 1)
        verdict();
    for (struct Process *child = processes; child < processes + PROCESSES; child++)
        if (child->parent == p)
            child->parent = processes + 1;
    p->state = ENDED;
    p->status = status;
    /* Whoever waits looks again: the parent, and the heir of the children. */
    if (p->parent->state == WAITING)
        p->parent->state = READY;
    if (processes[1].state == WAITING)
        processes[1].state = READY;
}

void process_end(u32 status)
{
    end(current, status);
    schedule();
}

static struct Process *child_of_current(u32 number)
{
    for (struct Process *p = processes; p < processes + PROCESSES; p++)
        if (p->state != UNUSED && p->parent == current && p->number == number)
            return p;
    return 0;
}

bool process_kill(u32 number)
{
    struct Process *p = child_of_current(number);
    if (!p || p->state == ENDED)
        return false;
    end(p, KILLED);
    return true;
}

u32 process_ticks_used(u32 number)
{
    struct Process *p = child_of_current(number);
    return p ? p->ticks_used : FAILED;
}

int process_wait(u32 *status)
{
    for (;;) {
        bool any = false;
        for (struct Process *p = processes; p < processes + PROCESSES; p++) {
            if (p->state == UNUSED || p->parent != current)
                continue;
            any = true;
            if (p->state != ENDED)
                continue;
            u32 number = p->number;
            *status = p->status;
            space_free(&p->space);
            page_put(p->stack_page);
            memset(p, 0, sizeof *p);
            return number;
        }
        if (!any)
            return -1;
        current->state = WAITING;
        schedule();
    }
}
