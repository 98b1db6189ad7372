/* How programs reach the kernel: by asking, and by mistake. And how the kernel starts. */
#include "../lib/string.h"
#include "kernel.h"
#include "system_calls.h"

/* ---- system calls ---- */

static u32 system_write(u32 text, u32 length)
{
    if (!space_allows(&current->space, text, length, false))
        return FAILED;
    machine_write((const char *)text, length);
    return length;
}

static u32 system_wait(u32 status_at)
{
    /* Before and after: the address must be good at the time of the store, and a child must not be lost for it. */
    u32 status;
    if (status_at && !space_allows(&current->space, status_at, sizeof status, true))
        return FAILED;
    u32 number = process_wait(&status);
    if (number != FAILED && status_at && space_allows(&current->space, status_at, sizeof status, true))
        memcpy((void *)status_at, &status, sizeof status);
    return number;
}

/* The text of a program ends with a zero, which is in the same pages or nowhere. */
static u32 system_check(u32 name, u32 ok)
{
    u32 length = 0;
    do
        if (!space_allows(&current->space, name, length + 1, false))
            return FAILED;
    while (((const char *)name)[length++]);
    check((const char *)name, ok);
    return 0;
}

static u32 system_null(u32 count)
{
    while (count--)
        machine_null();
    return 0;
}

static u32 system_call(struct Frame *frame, u32 a, u32 b)
{
    switch (frame->eax) {
    case SYSTEM_EXIT: process_end(a & 0xFF); return 0;
    case SYSTEM_FORK: return process_fork(frame);
    case SYSTEM_WAIT: return system_wait(a);
    case SYSTEM_KILL: return process_kill(a) ? 0 : FAILED;
    case SYSTEM_YIELD: process_yield(); return 0;
    case SYSTEM_SLEEP: process_sleep(a); return 0;
    case SYSTEM_GETPID: return current->number;
    case SYSTEM_WRITE: return system_write(a, b);
    case SYSTEM_HEAP: return space_heap(&current->space, a);
    case SYSTEM_TICKS: return ticks_now();
    case SYSTEM_TICKS_USED: return process_ticks_used(a);
    case SYSTEM_TIME: {
        u64 time = machine_time();
        frame->edx = time >> 32;
        return time;
    }
    case SYSTEM_PAGES_FREE: return pages_free() + machine_pages_lent();
    case SYSTEM_CHECK: return system_check(a, b);
    case SYSTEM_SHOW_ZEROS: return space_show_zeros(&current->space, a, b) ? 0 : FAILED;
    case SYSTEM_NULL: return system_null(a);
    default: return FAILED;
    }
}

/* ---- exceptions ---- */

#define SYSTEM_CALL_VECTOR 0x80

void kernel_trap(struct Frame *frame, u32 address)
{
    if ((frame->cs & 3) != 3) {
        /* The kernel looks before it touches a program's memory; so this is its own mistake. */
        check("the kernel makes no exceptions", false);
        verdict();
    }
    if (frame->vector == SYSTEM_CALL_VECTOR)
        frame->eax = system_call(frame, frame->ebx, frame->ecx);
    else if (frame->vector != PAGE_FAULT || !space_resolve(&current->space, address, frame->error & FAULT_WRITE))
        process_end(KILLED_BY(frame->vector));
}

/* ---- the start ---- */

static const char *after(const char *text, const char *prefix)
{
    while (*prefix)
        if (*text++ != *prefix++)
            return 0;
    return text;
}

/* "work=NAME:COUNT" */
static u32 wanted(const char *command_line, u32 *count)
{
    static const char *const names[] = { [WORK_FORK] = "work=fork:", [WORK_SWITCH] = "work=switch:",
                                         [WORK_PTE] = "work=pte:", [WORK_NULL] = "work=null:",
                                         [WORK_SLEEP] = "work=sleep:" };
    for (const char *p = command_line; *p; p++)
        for (u32 kind = WORK_FORK; kind <= WORK_SLEEP; kind++) {
            const char *digits = p == command_line || p[-1] == ' ' ? after(p, names[kind]) : 0;
            if (!digits)
                continue;
            for (*count = 0; *digits >= '0' && *digits <= '9'; digits++)
                *count = *count * 10 + (*digits - '0');
            return kind;
        }
    return WORK_CHECKS;
}

void __attribute__((regparm(2), noreturn)) program(u32 kind, u32 count);    /* programs.c */

void kernel(const char *command_line, u32 first_page, u32 end_page)
{
    u32 count = 0, kind = wanted(command_line, &count);
    if (end_page > KERNEL_END / PAGE_SIZE)
        end_page = KERNEL_END / PAGE_SIZE;
    pages_start(first_page, end_page);
    kernel_space.top = machine_map(end_page);
    machine_start_clock();
    say("a kernel with processes\n");
    processes_run((u32)program, kind, count);
}
