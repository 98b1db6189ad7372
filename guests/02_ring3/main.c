/* Ring 3 and back. The kernel drops to user mode; the program there may compute, and must ask for everything else.
 * Each way of asking, and each forbidden thing, is one check. */
#include "../abi/machine_map.h"
#include "../lib/interrupts.h"
#include "../lib/report.h"
#include "../lib/segments.h"
#include "../lib/string.h"
#include "../lib/user.h"

enum { SYSTEM_EXIT, SYSTEM_WRITE, SYSTEM_ADD, SYSTEM_GETPID };
#define PROCESS_ID 7

/* ---- kernel ---- */

/* EAX = number, EBX and ESI = arguments, result in EAX; the same for both doors. */
u32 system_call(u32 number, u32 a, u32 b)
{
    switch (number) {
    case SYSTEM_EXIT: leave_user(a);
    case SYSTEM_WRITE: print("%s", (const char *)a); return 0;
    case SYSTEM_ADD: return a + b;
    case SYSTEM_GETPID: return PROCESS_ID;
    default: return -1;
    }
}

static void on_system_call(struct Frame *frame)
{
    frame->eax = system_call(frame->eax, frame->ebx, frame->esi);
}

/* The fast door. SYSENTER saves nothing: by our convention the program left its stack pointer in ECX and its return
 * address in EDX, which is where SYSEXIT wants them back. */
asm(".text\n"
    "sysenter_entry:\n"
    "    pushl %ecx; pushl %edx\n"
    "    pushl %esi; pushl %ebx; pushl %eax\n"
    "    call system_call\n"
    "    addl $12, %esp\n"
    "    popl %edx; popl %ecx\n"
    "    sysexit\n");
extern char sysenter_entry[];
static u8 sysenter_stack[4096] __attribute__((aligned(16)));

/* ---- user programs: they run in ring 3 ---- */

static inline u32 ask(u32 number, u32 a, u32 b)
{
    u32 result;
    asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "S"(b) : "memory");
    return result;
}

static inline u32 ask_fast(u32 number, u32 a, u32 b)
{
    u32 result;
    asm volatile("movl %%esp, %%ecx; movl $1f, %%edx; sysenter; 1:"
                 : "=a"(result) : "a"(number), "b"(a), "S"(b) : "ecx", "edx", "memory");
    return result;
}

static u32 sum, process, sum_fast;

static void asking_program(void)
{
    ask(SYSTEM_WRITE, (u32)"Hello from ring 3\n", 0);
    sum = ask(SYSTEM_ADD, 19, 23);
    process = ask(SYSTEM_GETPID, 0, 0);
    ask(SYSTEM_EXIT, 5, 0);
}

static void fast_program(void)
{
    ask_fast(SYSTEM_WRITE, (u32)"Hello again, by SYSENTER\n", 0);
    sum_fast = ask_fast(SYSTEM_ADD, 40, 2);
    ask_fast(SYSTEM_EXIT, 6, 0);
}

/* A program of one forbidden instruction; the kernel notes the fault and lets it go on to its exit. */
#define NAUGHTY(name, setup, instruction)                                                                            \
    static void name(void)                                                                                           \
    {                                                                                                                \
        ATTEMPT_AFTER(setup, instruction);                                                                           \
        ask(SYSTEM_EXIT, 0, 0);                                                                                      \
    }
NAUGHTY(tries_cli, "", "cli")
NAUGHTY(tries_hlt, "", "hlt")
NAUGHTY(tries_cr0, "", "movl %%cr0, %%eax")
NAUGHTY(tries_lgdt, "", "lgdt 0x1000")
NAUGHTY(tries_in, "", "inb $0x60, %%al")
NAUGHTY(tries_out, "", "outb %%al, $0x21")
NAUGHTY(tries_granted_in, "", "inb $0x80, %%al")
NAUGHTY(tries_wide_in, "", "inw $0x80, %%ax")
NAUGHTY(tries_kernel_gate, "", "int $0x40")
NAUGHTY(tries_fake_fault, "", "int $13")
NAUGHTY(tries_kernel_data, "movl $0x10, %%eax", "movw %%ax, %%es")
NAUGHTY(tries_ud2, "", "ud2")

/* ---- the lesson ---- */

static u8 user_stack[4096] __attribute__((aligned(16)));

static u32 run(void (*program)(void))
{
    return run_user(program, user_stack + sizeof user_stack, EFLAGS_FIXED);
}

static bool faults(void (*program)(void), u32 vector, u32 error)
{
    run(program);
    return caught_fault(vector, error);
}

void main(void)
{
    set_gate(0x80, INTERRUPT_GATE | FROM_USER);
    handle(0x80, on_system_call);
    handle(GENERAL_PROTECTION, note_exception);
    handle(INVALID_OPCODE, note_exception);

    /* The slow door: a gate with DPL 3. */
    report("ring 3 exits with its status", run(asking_program) == 5);
    report("int 0x80: add", sum == 42);
    report("int 0x80: getpid", process == PROCESS_ID);

    /* The fast door, if the CPU has one: no gate, no stack read, three MSRs. */
    if (cpu_has(CPUID_EDX_SEP)) {
        wrmsr(MSR_SYSENTER_CS, KERNEL_CODE);
        wrmsr(MSR_SYSENTER_ESP, (u32)sysenter_stack + sizeof sysenter_stack);
        wrmsr(MSR_SYSENTER_EIP, (u32)sysenter_entry);
        report("SYSENTER and SYSEXIT", run(fast_program) == 6 && sum_fast == 42);
    } else {
        report_skip("SYSENTER and SYSEXIT", "CPUID does not list SEP");
    }

    /* Privileged instructions: #GP(0), EIP at the instruction. */
    report("cli is refused", faults(tries_cli, GENERAL_PROTECTION, 0));
    report("hlt is refused", faults(tries_hlt, GENERAL_PROTECTION, 0));
    report("mov from CR0 is refused", faults(tries_cr0, GENERAL_PROTECTION, 0));
    report("lgdt is refused", faults(tries_lgdt, GENERAL_PROTECTION, 0));
    report("ud2 is #UD in ring 3 too", faults(tries_ud2, INVALID_OPCODE, 0));

    /* Gates with DPL 0: the error code names the gate, index * 8 with the IDT bit. Otherwise any program could fake
     * an interrupt or, worse, an exception. */
    report("int 0x40 through a kernel gate is refused", faults(tries_kernel_gate, GENERAL_PROTECTION, 0x40 * 8 + 2));
    report("int 13 through a kernel gate is refused", faults(tries_fake_fault, GENERAL_PROTECTION, 13 * 8 + 2));

    /* A segment with DPL 0: the error code names the selector. */
    report("loading the kernel's data segment is refused", faults(tries_kernel_data, GENERAL_PROTECTION, KERNEL_DATA));

    /* Ports: IOPL is 0, so the TSS bitmap decides, and every byte of the access needs its bit. */
    report("in is refused by the bitmap", faults(tries_in, GENERAL_PROTECTION, 0));
    report("out is refused by the bitmap", faults(tries_out, GENERAL_PROTECTION, 0));
    task_state.io_map[POST_PORT / 8] &= ~(1 << (POST_PORT % 8));
    run(tries_granted_in);
    report("in from a granted port works", caught.count == 0);
    report("a word at a granted port touches a denied one", faults(tries_wide_in, GENERAL_PROTECTION, 0));
    report("in from another port is still refused", faults(tries_in, GENERAL_PROTECTION, 0));
}
