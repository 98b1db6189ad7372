/* The fault gallery: one exhibit per exception vector. For each the kernel checks the vector, the error code and the
 * saved EIP. A *fault* points at the instruction (mend the cause, try again), a *trap* behind it, and an *abort*
 * nowhere useful. SDM volume 3A, table 6-1. */
#include "../lib/interrupts.h"
#include "../lib/report.h"
#include "../lib/segments.h"
#include "../lib/string.h"
#include "../lib/user.h"

/* Selectors of our own, behind the library's */
#define ABSENT_DATA 0x30
#define BROKEN_TSS 0x38
#define BEYOND_GDT 0x1230

/* Bits of an error code that names a selector (SDM volume 3A, 6.13) */
#define ERROR_IDT 2
#define SELECTOR_TI 4

/* ---- Traps: EIP behind the instruction ---- */

static u32 steps, step_eip[4];

static void begin_stepping(struct Frame *frame)
{
    /* The debugger's way to set TF: in the EFLAGS that IRET will load. */
    frame->eflags |= EFLAGS_TF;
}

static void count_step(struct Frame *frame)
{
    if (steps < 4)
        step_eip[steps] = frame->eip;
    if (++steps == 3)
        frame->eflags &= ~EFLAGS_TF;
}

static void debug_exceptions(void)
{
    /* Single step: #DB after each instruction, DR6.BS says why. */
    extern char stepping_1[], stepping_2[], stepping_3[];
    handle(BREAKPOINT, begin_stepping);
    handle(DEBUG_EXCEPTION, count_step);
    write_dr6(0);
    asm volatile("int3\n"
                 "             movl $1, %%eax\n"
                 "stepping_1:  addl $2, %%eax\n"
                 "stepping_2:  jmp stepping_3\n"
                 "             ud2\n"
                 "stepping_3:  addl $4, %%eax\n" ::: "eax", "cc");
    report("#DB single step stops after each instruction",
           steps == 3 && step_eip[0] == (u32)stepping_1 && step_eip[1] == (u32)stepping_2
           && step_eip[2] == (u32)stepping_3);
    report("#DB sets DR6.BS", read_dr6() & 1 << 14);
}

static void traps(void)
{
    handle(BREAKPOINT, note_exception);
    handle(OVERFLOW, note_exception);

    ATTEMPT("int3");
    report("#BP is a trap", caught_trap(BREAKPOINT));

    /* 127 + 1 overflows a signed byte; INTO is a conditional INT 4. */
    ATTEMPT_AFTER("movb $127, %%al\n incb %%al", "into");
    report("#OF is a trap", caught_trap(OVERFLOW));
    ATTEMPT_AFTER("xorl %%eax, %%eax", "into");
    report("INTO without overflow does nothing", caught.count == 0);
}

/* ---- Faults: EIP at the instruction ---- */

static u32 divisor, mended;
static const int bounds[2] __attribute__((used)) = { 10, 20 };

static void mend_divisor(struct Frame *frame)
{
    /* A fault can be mended: change the cause, return to the same instruction. */
    (void)frame;
    mended++;
    divisor = 5;
}

static void mend_task_switched(struct Frame *frame)
{
    (void)frame;
    mended++;
    clts();
}

static void mend_segment(struct Frame *frame)
{
    mended++;
    caught.error = frame->error;
    set_descriptor(ABSENT_DATA, 0, 0xFFFFFFFF, PRESENT | DATA_SEGMENT);
}

static void simple_faults(void)
{
    handle(DIVIDE_ERROR, note_exception);
    handle(BOUND_RANGE, note_exception);
    handle(INVALID_OPCODE, note_exception);

    ATTEMPT_AFTER("xorl %%edx, %%edx\n movl $1, %%eax\n xorl %%ecx, %%ecx", "divl %%ecx");
    report("#DE division by zero", caught_fault(DIVIDE_ERROR, 0));
    ATTEMPT_AFTER("movl $-1, %%edx\n movl $-1, %%eax\n movl $1, %%ecx", "divl %%ecx");
    report("#DE quotient too large", caught_fault(DIVIDE_ERROR, 0));
    ATTEMPT_AFTER("movl $0x80000000, %%eax\n cltd\n movl $-1, %%ecx", "idivl %%ecx");
    report("#DE most negative by minus one", caught_fault(DIVIDE_ERROR, 0));

    handle(DIVIDE_ERROR, mend_divisor);
    u32 quotient;
    asm volatile("divl %2" : "=a"(quotient) : "0"(35), "m"(divisor), "d"(0) : "cc", "memory");
    report("#DE mended and tried again", mended == 1 && quotient == 7);

    ATTEMPT_AFTER("movl $21, %%eax", "bound %%eax, bounds");
    report("#BR above the bound", caught_fault(BOUND_RANGE, 0));
    ATTEMPT_AFTER("movl $20, %%eax", "bound %%eax, bounds");
    report("#BR not at the bound", caught.count == 0);

    ATTEMPT("ud2");
    report("#UD ud2", caught_fault(INVALID_OPCODE, 0));
    /* (The NOPs are for disassemblers that misjudge its length.) */
    ATTEMPT("ud1 %%eax, %%eax\n .skip 8, 0x90");
    report("#UD ud1, which has operands and ignores them", caught_fault(INVALID_OPCODE, 0));
    ATTEMPT(".byte 0xF0, 0x90");
    report("#UD lock nop", caught_fault(INVALID_OPCODE, 0));

    /* CR0.TS says "the FPU holds another task's numbers": #NM lets a kernel switch it lazily. */
    mended = 0;
    handle(DEVICE_NOT_AVAILABLE, mend_task_switched);
    write_cr0(read_cr0() | CR0_TS);
    asm volatile("fninit");
    report("#NM lazy FPU switch", mended == 1 && !(read_cr0() & CR0_TS));
}

static void selector_faults(void)
{
    handle(SEGMENT_NOT_PRESENT, note_exception);
    handle(STACK_FAULT, note_exception);
    handle(GENERAL_PROTECTION, note_exception);
    handle(INVALID_TSS, note_exception);

    /* Loading a selector reads its descriptor; the error code names the selector. */
    set_descriptor(ABSENT_DATA, 0, 0xFFFFFFFF, DATA_SEGMENT);
    ATTEMPT_AFTER("movl $0x30, %%eax", "movw %%ax, %%es");
    report("#NP data segment not present", caught_fault(SEGMENT_NOT_PRESENT, ABSENT_DATA));
    ATTEMPT_AFTER("movl $0x30, %%eax", "movw %%ax, %%ss");
    report("#SS stack segment not present", caught_fault(STACK_FAULT, ABSENT_DATA));
    ATTEMPT_AFTER("movl $0x1230, %%eax", "movw %%ax, %%es");
    report("#GP selector beyond the GDT", caught_fault(GENERAL_PROTECTION, BEYOND_GDT));
    ATTEMPT_AFTER("movl $0x08, %%eax", "movw %%ax, %%ss");
    report("#GP code segment as a stack", caught_fault(GENERAL_PROTECTION, KERNEL_CODE));
    ATTEMPT_AFTER("xorl %%eax, %%eax", "movw %%ax, %%ss");
    report("#GP null stack segment", caught_fault(GENERAL_PROTECTION, 0));
    ATTEMPT("ljmp $0x10, $0");
    report("#GP jump into a data segment", caught_fault(GENERAL_PROTECTION, KERNEL_DATA));
    ATTEMPT_AFTER("movl $0x10, %%eax", "ltr %%ax");
    report("#GP data segment as a task register", caught_fault(GENERAL_PROTECTION, KERNEL_DATA));
    ATTEMPT("int $0xF0");
    report("int 0xF0 through a good gate", caught.count == 1 && caught.vector == 0xF0);

    /* Demand segmentation, the 1982 ancestor of demand paging: mend the descriptor, try again. */
    mended = 0;
    handle(SEGMENT_NOT_PRESENT, mend_segment);
    asm volatile("movw %w0, %%es\n movw %w1, %%es" :: "r"(ABSENT_DATA), "r"(KERNEL_DATA));
    report("#NP mended and tried again", mended == 1 && caught.error == ABSENT_DATA);
    handle(SEGMENT_NOT_PRESENT, note_exception);

    /* Gates: the IDT bit in the error code says which table the index is for. */
    set_gate(0xF1, ABSENT_GATE);
    ATTEMPT("int $0xF1");
    report("#NP gate not present", caught_fault(SEGMENT_NOT_PRESENT, 0xF1 * 8 + ERROR_IDT));
    set_gate(0xF2, 0);
    ATTEMPT("int $0xF2");
    report("#GP not a gate", caught_fault(GENERAL_PROTECTION, 0xF2 * 8 + ERROR_IDT));
    set_gate_target(0xF3, INTERRUPT_GATE, BEYOND_GDT, 0);
    ATTEMPT("int $0xF3");
    report("#GP gate to a selector beyond the GDT", caught_fault(GENERAL_PROTECTION, BEYOND_GDT));
    set_gate_target(0xF4, INTERRUPT_GATE, 0, 0);
    ATTEMPT("int $0xF4");
    report("#GP gate to the null selector", caught_fault(GENERAL_PROTECTION, 0));

    /* IRET with NT set means "return to the task whose TSS the back link names"; ours names nonsense. */
    task_state.back_link = KERNEL_DATA | SELECTOR_TI;
    ATTEMPT_AFTER("pushl $0x4002\n popf", "iret");
    report("#TS back link into the LDT", caught_fault(INVALID_TSS, KERNEL_DATA | SELECTOR_TI));
    task_state.back_link = KERNEL_DATA;
    ATTEMPT_AFTER("pushl $0x4002\n popf", "iret");
    report("#TS back link is no TSS", caught_fault(INVALID_TSS, KERNEL_DATA));
    asm volatile("pushl $2\n popf" ::: "cc", "memory");
}

/* ---- Page faults ---- */

#define PAGE_PRESENT 1
#define PAGE_WRITABLE 2
#define PAGE_SIZE_4M 0x80
static u32 directory[1024] __attribute__((aligned(4096)));
static u32 mended_value;
static volatile u32 esp_before, esp_after;

static void mend_page(struct Frame *frame)
{
    (void)frame;
    mended++;
    caught.cr2 = read_cr2();
    directory[1] = PAGE_PRESENT | PAGE_WRITABLE | PAGE_SIZE_4M;         /* 4 MiB -> physical 0 */
}

static void page_faults(void)
{
    /* The first 4 MiB map to themselves, the rest of the world is absent. */
    directory[0] = PAGE_PRESENT | PAGE_WRITABLE | PAGE_SIZE_4M;
    write_cr4(read_cr4() | CR4_PSE);
    write_cr3((u32)directory);
    write_cr0(read_cr0() | CR0_PG);
    handle(PAGE_FAULT, note_exception);

    ATTEMPT("movl 0x00400010, %%eax");
    report("#PF read: error code 0, CR2 is the address", caught_fault(PAGE_FAULT, 0) && caught.cr2 == 0x00400010);
    ATTEMPT("movl %%eax, 0x00400020");
    report("#PF write: error code 2", caught_fault(PAGE_FAULT, 2) && caught.cr2 == 0x00400020);
    ATTEMPT("incl 0x00400030");
    if (caught.error == 0)
        report_skip("#PF read-modify-write counts as a write", "this CPU reads first, as emulators do");
    else
        report("#PF read-modify-write counts as a write", caught_fault(PAGE_FAULT, 2) && caught.cr2 == 0x00400030);
    ATTEMPT_AFTER("movl $0x00400040, %%eax", "jmp *%%eax");
    report("#PF fetch: EIP and CR2 are the target",
           caught.vector == PAGE_FAULT && caught.error == 0 && caught.eip == 0x00400040 && caught.cr2 == 0x00400040);
    ATTEMPT_AFTER("movl %%esp, esp_before", "popl 0x00400050");
    asm volatile("movl %%esp, esp_after" ::: "memory");
    report("#PF leaves ESP alone", caught_fault(PAGE_FAULT, 2) && esp_before == esp_after);

    /* A string instruction that faults in the middle: the registers say how far it came. */
    u32 left, at;
    asm volatile("movl $1f, attempt_at\n movl $2f, attempt_next\n"
                 "movl $0x003FFFF8, %%edi\n movl $16, %%ecx\n"
                 "1: rep stosb\n2:" : "=c"(left), "=D"(at) : "a"(0) : "memory");
    report("#PF in the middle of rep stosb", left == 8 && at == 0x00400000 && caught.vector == PAGE_FAULT
           && caught.eip == attempt_at && caught.cr2 == 0x00400000);

    mended = 0;
    handle(PAGE_FAULT, mend_page);
    asm volatile("movl 0x00500000, %0" : "=r"(mended_value) :: "memory");
    report("#PF mended and tried again",
           mended == 1 && caught.cr2 == 0x00500000 && mended_value == *(volatile u32 *)0x00100000);
    directory[1] = 0;
    write_cr3((u32)directory);
    handle(PAGE_FAULT, note_exception);
}

/* ---- Double faults ---- */

static void double_faults(void)
{
    handle(DOUBLE_FAULT, note_exception);

    /* #GP is delivered through a gate that is not present: #NP on top of #GP, both contributory, make #DF. */
    set_gate(GENERAL_PROTECTION, ABSENT_GATE);
    ATTEMPT_AFTER("movl $0x1230, %%eax", "movw %%ax, %%es");
    report("#DF after #GP with its gate absent", caught.count == 1 && caught.vector == DOUBLE_FAULT && caught.error == 0);
    set_gate(GENERAL_PROTECTION, INTERRUPT_GATE);

    /* The same for #PF; CR2 still tells the first address. */
    set_gate(PAGE_FAULT, ABSENT_GATE);
    ATTEMPT("movl 0x00400060, %%eax");
    report("#DF after #PF with its gate absent",
           caught.count == 1 && caught.vector == DOUBLE_FAULT && caught.error == 0 && read_cr2() == 0x00400060);
    set_gate(PAGE_FAULT, INTERRUPT_GATE);

    /* But a benign exception followed by #NP is just #NP, one after the other. (EXT bit: after an exception.) */
    set_gate(INVALID_OPCODE, ABSENT_GATE);
    ATTEMPT("ud2");
    report("#NP, not #DF, after #UD with its gate absent",
           caught.count == 1 && caught.vector == SEGMENT_NOT_PRESENT
           && (caught.error & ~1u) == INVALID_OPCODE * 8 + ERROR_IDT);
    set_gate(INVALID_OPCODE, INTERRUPT_GATE);
}

/* ---- Alignment check: only in ring 3, only with CR0.AM and EFLAGS.AC ---- */

#define EFLAGS_AC 0x00040000
static u8 user_stack[4096] __attribute__((aligned(16)));

static void misaligned_program(void)
{
    ATTEMPT("movl directory + 1, %%eax");
    asm volatile("int $0x80");
}

static void on_exit(struct Frame *frame)
{
    (void)frame;
    leave_user(0);
}

static void alignment_check(void)
{
    set_gate(0x80, INTERRUPT_GATE | FROM_USER);
    handle(0x80, on_exit);
    handle(ALIGNMENT_CHECK, note_exception);
    write_cr0((read_cr0() | CR0_AM) & ~CR0_PG);
    run_user(misaligned_program, user_stack + sizeof user_stack, EFLAGS_FIXED | EFLAGS_AC);
    if (caught.count)
        report("#AC misaligned access in ring 3", caught_fault(ALIGNMENT_CHECK, 0));
    else
        report_skip("#AC misaligned access in ring 3", "this CPU does not check alignment, as most emulators do not");
}

void main(void)
{
    handle(0xF0, note_exception);
    debug_exceptions();
    traps();
    simple_faults();
    selector_faults();
    page_faults();
    double_faults();
    alignment_check();
}
