/* The program of all processes, in ring 3: text and constants here, variables on the stack and the heap, no others.
 * Nothing printed depends on time, so it is the same on every machine. */
#include "../lib/interrupts.h"
#include "kernel.h"
#include "system_calls.h"

static inline u32 ask(u32 number, u32 a, u32 b)
{
    u32 result;
    asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b) : "edx", "memory");
    return result;
}

static inline u64 now(void)
{
    u64 time;
    asm volatile("int $0x80" : "=A"(time) : "a"(SYSTEM_TIME) : "memory");
    return time;
}

static void stop(u32 status) { ask(SYSTEM_EXIT, status, 0); }
static u32 fork(void) { return ask(SYSTEM_FORK, 0, 0); }
static u32 wait(u32 *status) { return ask(SYSTEM_WAIT, (u32)status, 0); }
static u32 number(void) { return ask(SYSTEM_GETPID, 0, 0); }
static u32 heap(int change) { return ask(SYSTEM_HEAP, change, 0); }
static u32 pages_left(void) { return ask(SYSTEM_PAGES_FREE, 0, 0); }
static u32 write(const void *text, u32 length) { return ask(SYSTEM_WRITE, (u32)text, length); }
static void report_line(const char *name, bool ok) { ask(SYSTEM_CHECK, (u32)name, ok); }

/* Waits for `child` and says how it ended. */
static u32 ending_of(u32 child)
{
    u32 status = FAILED;
    return wait(&status) == child ? status : FAILED;
}

/* ---- fork ---- */

static void forking(void)
{
    report_line("the first process has number 1", number() == 1);
    u32 child = fork();
    if (child == 0) {
        write("hello from the child\n", 21);
        stop(number());
    }
    u32 status = ending_of(child);
    write("hello from the parent\n", 22);
    report_line("fork returns twice, with 0 and with the child's number", child != 0 && child != FAILED);
    report_line("wait returns the child's number and status", status == child);
    report_line("wait fails without children", wait(0) == FAILED);

    /* A family: the child's child is waited for by the child. */
    child = fork();
    if (child == 0) {
        u32 grandchild = fork();
        if (grandchild == 0)
            stop(20);
        stop(ending_of(grandchild) + 1);
    }
    report_line("a child has children", ending_of(child) == 21);

    /* An orphan becomes ours. */
    child = fork();
    if (child == 0) {
        if (fork() == 0) {
            ask(SYSTEM_SLEEP, 1, 0);
            stop(31);
        }
        stop(30);
    }
    u32 first = 0, second = 0;
    bool both = wait(&first) == child && wait(&second) != FAILED;
    report_line("an orphan is waited for by the first process", both && first == 30 && second == 31);

    /* Ten at once; their statuses come in any order, so we add them up. */
    u32 sum = 0;
    for (u32 i = 1; i <= 10; i++)
        if (fork() == 0) {
            for (u32 round = 0; round < i; round++)
                ask(SYSTEM_YIELD, 0, 0);
            stop(i);
        }
    for (u32 i = 1; i <= 10; i++) {
        u32 status = 0;
        wait(&status);
        sum += status;
    }
    report_line("ten children at once", sum == 55 && wait(0) == FAILED);
}

/* ---- copy on write ---- */

static void copying(void)
{
    volatile u32 *shared = (volatile u32 *)heap(2 * PAGE_SIZE), *second = shared + PAGE_SIZE / 4;
    volatile u32 on_stack = 1;
    shared[0] = 1;
    second[0] = 1;
    u32 child = fork();
    if (child == 0) {
        bool inherited = shared[0] == 1 && on_stack == 1;
        shared[0] = 2;
        on_stack = 2;
        ask(SYSTEM_YIELD, 0, 0);                        /* the parent writes, or has written, too */
        stop(inherited && shared[0] == 2 && on_stack == 2 && second[0] == 1 ? 1 : 0);
    }
    second[0] = 3;
    ask(SYSTEM_YIELD, 0, 0);
    bool child_ok = ending_of(child) == 1;
    report_line("the child sees what the parent wrote before", child_ok);
    report_line("the child's writes do not reach the parent", shared[0] == 1 && on_stack == 1);
    report_line("the parent keeps its own writes", second[0] == 3);

    /* Sharing means that a fork costs no copy until somebody writes. */
    u32 before = pages_left();
    child = fork();
    if (child == 0) {
        ask(SYSTEM_SLEEP, 1, 0);                        /* until the parent waits, and has its stack for itself again */
        u32 then = pages_left();
        (void)shared[0];
        u32 after_reading = pages_left();
        shared[0] = 5;
        stop(then == after_reading && then - pages_left() == 1 ? 1 : 0);
    }
    report_line("reading a shared page is free, writing costs one", ending_of(child) == 1);
    report_line("an end gives all pages back", before == pages_left());
    heap(-2 * PAGE_SIZE);
}

/* ---- demand-zero memory ---- */

static u32 __attribute__((noinline)) deep(u32 levels)
{
    volatile u32 room[256];
    room[0] = levels;
    room[255] = levels ? deep(levels - 1) : 0;
    return room[255] + (room[0] == levels);
}

static void growing(void)
{
    u32 before = pages_left();
    volatile u32 *words = (volatile u32 *)heap(8 * PAGE_SIZE);
    report_line("the heap costs nothing until it is used", before == pages_left());
    bool zero = true;
    for (u32 i = 0; i < 8 * PAGE_SIZE / 4; i++)
        zero = zero && words[i] == 0;
    report_line("the heap is zero", zero);
    report_line("reading zeros takes no page", before == pages_left());
    for (u32 i = 0; i < 8; i++)
        words[i * PAGE_SIZE / 4] = i + 1;
    bool kept = true;
    for (u32 i = 0; i < 8; i++)
        kept = kept && words[i * PAGE_SIZE / 4] == i + 1 && words[i * PAGE_SIZE / 4 + 1] == 0;
    report_line("writing takes one page each", before - pages_left() == 8);
    report_line("the heap keeps what is written", kept);
    heap(-8 * PAGE_SIZE);
    report_line("a smaller heap gives pages back", before == pages_left());
    words = (volatile u32 *)heap(PAGE_SIZE);
    report_line("what was given back comes again as zero", words[0] == 0);
    heap(-PAGE_SIZE);
    report_line("the heap has limits", heap(1) == FAILED && heap(-PAGE_SIZE) == FAILED
                && heap(USER_END - HEAP_BASE + PAGE_SIZE) == FAILED);

    /* Far away in the heap, another table is needed. */
    before = pages_left();
    words = (volatile u32 *)heap(5 << 20);
    words[(5 << 20) / 4 - 1] = 7;
    report_line("a distant page costs a table as well", words[(5 << 20) / 4 - 1] == 7 && before - pages_left() == 3);
    heap(-(5 << 20));
    report_line("the stack grows", deep(40) == 41);

    /* Many entries at once */
    words = (volatile u32 *)heap(300 * PAGE_SIZE);
    before = pages_left();
    bool ok = ask(SYSTEM_SHOW_ZEROS, (u32)words, 300) == 0;
    for (u32 i = 0; i < 300; i++)
        ok = ok && words[i * PAGE_SIZE / 4] == 0;
    words[299 * PAGE_SIZE / 4] = 1;
    report_line("300 pages mapped in one batch", ok && before - pages_left() == 1);
    heap(-300 * PAGE_SIZE);
}

/* ---- mistakes ---- */

enum Mistake { READS_NOWHERE, WRITES_NOWHERE, READS_KERNEL, WRITES_KERNEL, WRITES_TEXT, JUMPS, DISABLES, DIVIDES,
               INVALID };

static void make_mistake(enum Mistake mistake)
{
    switch (mistake) {
    case READS_NOWHERE: asm volatile("movl 0x70000000, %%eax" ::: "eax"); break;
    case WRITES_NOWHERE: asm volatile("movl %%eax, 0xC0000000" ::: "memory"); break;
    case READS_KERNEL: asm volatile("movl kernel_space, %%eax" ::: "eax"); break;
    case WRITES_KERNEL: asm volatile("movl %%eax, kernel_space" ::: "memory"); break;
    case WRITES_TEXT: asm volatile("movl %%eax, program" ::: "memory"); break;
    case JUMPS: asm volatile("jmp kernel"); break;
    case DISABLES: asm volatile("cli" ::: "memory"); break;
    case DIVIDES: asm volatile("xorl %%ecx, %%ecx; xorl %%edx, %%edx; divl %%ecx" ::: "eax", "ecx", "edx"); break;
    case INVALID: asm volatile("ud2"); break;
    }
}

static void erring(void)
{
    static const struct { enum Mistake mistake; u32 vector; const char *name; } mistakes[] = {
        { READS_NOWHERE, PAGE_FAULT, "reading where nothing is kills that process" },
        { WRITES_NOWHERE, PAGE_FAULT, "writing where nothing is kills that process" },
        { READS_KERNEL, PAGE_FAULT, "the kernel's memory cannot be read" },
        { WRITES_KERNEL, PAGE_FAULT, "the kernel's memory cannot be written" },
        { WRITES_TEXT, PAGE_FAULT, "a program's text cannot be written" },
        { JUMPS, PAGE_FAULT, "the kernel's text cannot be run" },
        { DISABLES, GENERAL_PROTECTION, "interrupts cannot be disabled" },
        { DIVIDES, DIVIDE_ERROR, "dividing by zero kills that process" },
        { INVALID, INVALID_OPCODE, "what is no instruction kills that process" },
    };
    u32 before = pages_left();
    for (u32 i = 0; i < sizeof mistakes / sizeof mistakes[0]; i++) {
        u32 child = fork();
        if (child == 0) {
            make_mistake(mistakes[i].mistake);
            stop(0);
        }
        report_line(mistakes[i].name, ending_of(child) == KILLED_BY(mistakes[i].vector));
    }
    report_line("and the others live on", before == pages_left());
}

static void asking_wrongly(void)
{
    char text[4] = "abc";
    u32 text_at = (u32)text;
    report_line("a request that does not exist fails", ask(1000, 0, 0) == FAILED && ask(FAILED, 0, 0) == FAILED);
    report_line("write: not from the kernel", write(&kernel_space, 4) == FAILED);
    report_line("write: not from nowhere",
                write((void *)0x70000000, 4) == FAILED && write((void *)FAILED, 1) == FAILED);
    report_line("write: not beyond the heap", write((void *)(heap(0) - 2), 4) == FAILED);
    report_line("write: not once around", write(text, -text_at) == FAILED && write(text, FAILED) == FAILED);
    report_line("write: nothing is not much", write(text, 0) == 0);

    /* A child to wait for is there; the address is not. */
    u32 child = fork();
    if (child == 0)
        stop(9);
    report_line("wait: not into the kernel", wait((u32 *)&kernel_space) == FAILED);
    report_line("wait: not into a program's text", wait((u32 *)(u32)make_mistake) == FAILED);
    report_line("wait: the child is not lost by that", ending_of(child) == 9);

    /* The kernel writes to a page that is shared: for one process only. */
    volatile u32 *page = (volatile u32 *)heap(PAGE_SIZE);
    page[0] = 4;
    child = fork();
    if (child == 0) {
        u32 grandchild = fork();
        if (grandchild == 0)
            stop(8);
        wait((u32 *)page);
        stop(page[0]);
    }
    report_line("wait: into a shared page", ending_of(child) == 8 && page[0] == 4);
    heap(-PAGE_SIZE);
}

/* ---- time ---- */

static u32 spinner(void)
{
    u32 child = fork();
    if (child == 0)
        for (;;)
            asm volatile("");
    return child;
}

static void passing_time(void)
{
    u32 first = spinner(), second = spinner();
    ask(SYSTEM_SLEEP, 3, 0);
    report_line("who never gives up the CPU loses it",
                ask(SYSTEM_TICKS_USED, first, 0) > 0 && ask(SYSTEM_TICKS_USED, second, 0) > 0);
    bool killed = ask(SYSTEM_KILL, first, 0) == 0 && ask(SYSTEM_KILL, second, 0) == 0;
    u32 status[2] = { 0, 0 };
    u32 sum = wait(&status[0]) + wait(&status[1]);
    report_line("a process can be killed by its parent",
                killed && sum == first + second && status[0] == KILLED && status[1] == KILLED);
    report_line("but not the parent, and not twice",
                ask(SYSTEM_KILL, 1, 0) == FAILED && ask(SYSTEM_KILL, first, 0) == FAILED);

    u32 before = ask(SYSTEM_TICKS, 0, 0);
    ask(SYSTEM_SLEEP, 2, 0);
    report_line("sleep takes as long as it should", ask(SYSTEM_TICKS, 0, 0) - before >= 2);

    u64 last = now();
    bool forward = true;
    for (u32 i = 0; i < 50; i++) {
        u64 time = now();
        forward = forward && time >= last;
        last = time;
    }
    ask(SYSTEM_SLEEP, 1, 0);
    report_line("time goes forward", forward && now() > last);
}

static void leaking(void)
{
    u32 before = pages_left();
    bool ok = true;
    for (u32 i = 0; i < 40; i++) {
        u32 child = fork();
        if (child == 0)
            stop(i);
        ok = ok && ending_of(child) == i;
    }
    report_line("40 forks and waits", ok);
    report_line("no page is lost", before == pages_left());
}

/* ---- work to be measured ---- */

static bool work_fork(u32 count)
{
    while (count--) {
        u32 child = fork();
        if (child == 0)
            stop(0);
        if (ending_of(child) != 0)
            return false;
    }
    return true;
}

static bool work_switch(u32 count)
{
    u32 child = fork();
    for (u32 i = 0; i < count / 2; i++)
        ask(SYSTEM_YIELD, 0, 0);
    if (child == 0)
        stop(0);
    return ending_of(child) == 0;
}

#define ROUND 2048u                     /* pages: what the tables of any machine have room for */

static bool work_pte(u32 count)
{
    bool ok = true;
    while (count && ok) {
        u32 pages = count < ROUND ? count : ROUND;
        u32 start = heap(pages * PAGE_SIZE);
        ok = start != FAILED && ask(SYSTEM_SHOW_ZEROS, start, pages) == 0;
        heap(-pages * PAGE_SIZE);
        count -= pages;
    }
    return ok;
}

void __attribute__((regparm(2), noreturn)) program(u32 kind, u32 count)
{
    switch (kind) {
    case WORK_FORK: report_line("work: fork", work_fork(count)); break;
    case WORK_SWITCH: report_line("work: switch", work_switch(count)); break;
    case WORK_PTE: report_line("work: page-table entries", work_pte(count)); break;
    case WORK_NULL: report_line("work: nothing", ask(SYSTEM_NULL, count, 0) == 0); break;
    case WORK_SLEEP: report_line("work: sleep", ask(SYSTEM_SLEEP, count, 0) == 0); break;
    default:
        forking();
        copying();
        growing();
        erring();
        asking_wrongly();
        passing_time();
        leaking();
    }
    stop(0);
    __builtin_unreachable();
}
