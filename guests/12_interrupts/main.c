/* The fine print of interrupts: when exactly they come, and when they must not. Interrupts are made by the local
 * APIC's "to self" command, so that they are pending at a known instruction.
 *
 * How to look at IF without PUSHF: let the CPU save it. `int READ_FLAGS` pushes EFLAGS into the frame, and that is
 * the guest's EFLAGS even where PUSHF would show the hypervisor's. */
#include "../lib/apic.h"
#include "../lib/interrupts.h"
#include "../lib/irq.h"
#include "../lib/report.h"
#include "../lib/segments.h"
#include "../lib/string.h"

#define READ_FLAGS 0x90
#define VIA_INTERRUPT_GATE 0x91
#define VIA_TRAP_GATE 0x92
#define LOW 0x41                        /* priority class 4 */
#define LOW_TOO 0x42
#define HIGH 0x61                       /* priority class 6 */
#define PIT_VECTOR 0x51

static u32 flags_seen, gate_flags;
static volatile u32 count;

static void on_read_flags(struct Frame *frame) { flags_seen = frame->eflags; }

static bool interrupts_on(void)
{
    asm volatile("int %0" :: "i"(READ_FLAGS) : "memory");
    return flags_seen & EFLAGS_IF;
}

/* ---- gates ---- */

static void on_gate(struct Frame *frame)
{
    gate_flags = frame->eflags;
    count = interrupts_on();            /* inside the handler */
}

static void gates(void)
{
    set_gate(VIA_TRAP_GATE, TRAP_GATE);
    handle(VIA_TRAP_GATE, on_gate);
    handle(VIA_INTERRUPT_GATE, on_gate);

    cli();
    report("CLI clears IF", !interrupts_on());
    sti();
    report("STI sets IF", interrupts_on());
    asm volatile("int %0" :: "i"(VIA_INTERRUPT_GATE) : "memory");
    report("an interrupt gate clears IF", count == 0 && gate_flags & EFLAGS_IF);
    report("IRET brings it back", interrupts_on());
    asm volatile("int %0" :: "i"(VIA_TRAP_GATE) : "memory");
    report("a trap gate keeps IF", count == 1 && gate_flags & EFLAGS_IF);
    cli();
    asm volatile("int %0" :: "i"(VIA_TRAP_GATE) : "memory");
    report("a trap gate keeps a cleared IF, too", count == 0 && !(gate_flags & EFLAGS_IF));
}

/* ---- shadows ---- */

static u32 saved_eip;

static void on_low(struct Frame *frame)
{
    count++;
    saved_eip = frame->eip;
    apic_end_of_interrupt();
}

static void sti_shadow(void)
{
    extern char after_nop[], after_halt[];
    handle(LOW, on_low);
    count = 0;

    /* Pending, but IF = 0 */
    apic_interrupt_self(LOW);
    report("CLI holds an interrupt back", count == 0 && apic_bit(APIC_REQUEST, LOW));

    /* STI opens the door only after the next instruction, and that one closes it again. */
    asm volatile("sti; cli" ::: "memory");
    report("STI, CLI: no window", count == 0 && apic_bit(APIC_REQUEST, LOW));

    /* One instruction between is a window. */
    asm volatile("sti; nop\nafter_nop: cli" ::: "memory");
    report("STI, NOP, CLI: one window, behind the NOP", count == 1 && saved_eip == (u32)after_nop);
    report("the request is gone", !apic_bit(APIC_REQUEST, LOW) && !apic_bit(APIC_IN_SERVICE, LOW));

    /* With IF already set STI has no shadow to give. The idle loop depends on the other case: */
    apic_interrupt_self(LOW);
    asm volatile("sti; hlt\nafter_halt: cli" ::: "memory");
    report("STI, HLT: the interrupt wakes, it is not slept through", count == 2 && saved_eip == (u32)after_halt);
}

static u32 steps, step_eip[8];

static void begin_stepping(struct Frame *frame)
{
    frame->eflags |= EFLAGS_TF;
}

static void count_step(struct Frame *frame)
{
    if (steps < 8)
        step_eip[steps] = frame->eip;
    if (++steps == 3)
        frame->eflags &= ~EFLAGS_TF;
}

static void stack_segment_shadow(void)
{
    /* MOV SS holds everything back for one instruction, so that SS and ESP change together: even a single step. */
    extern char shadow_1[], shadow_2[], shadow_3[];
    handle(BREAKPOINT, begin_stepping);
    handle(DEBUG_EXCEPTION, count_step);
    asm volatile("movl %0, %%eax\n"
                 "int3\n"
                 "nop\n"
                 "shadow_1: movw %%ax, %%ss\n"
                 "nop\n"
                 "shadow_2: nop\n"
                 "shadow_3: nop" :: "i"(KERNEL_DATA) : "eax", "memory");
    report("MOV SS: no single step behind it",
           steps == 3 && step_eip[0] == (u32)shadow_1 && step_eip[1] == (u32)shadow_2 && step_eip[2] == (u32)shadow_3);
}

/* ---- priorities ---- */

static char story[16];
static u32 chapters;

static void tell(char c)
{
    if (chapters < sizeof story - 1)
        story[chapters++] = c;
}

static void on_low_nesting(struct Frame *frame)
{
    (void)frame;
    tell('l');
    apic_interrupt_self(HIGH);          /* may interrupt us, once we allow it */
    apic_interrupt_self(LOW_TOO);       /* may not: same class */
    sti();
    asm volatile("nop; nop");
    cli();
    tell('L');
    apic_end_of_interrupt();
}

static void on_high(struct Frame *frame)
{
    (void)frame;
    tell('h');
    sti();
    asm volatile("nop; nop");
    cli();
    tell('H');
    apic_end_of_interrupt();
}

static void on_low_too(struct Frame *frame)
{
    (void)frame;
    tell('t');
    apic_end_of_interrupt();
}

static void priorities(void)
{
    handle(LOW, on_low_nesting);
    handle(LOW_TOO, on_low_too);
    handle(HIGH, on_high);
    apic_interrupt_self(LOW);
    asm volatile("sti; nop; nop; cli" ::: "memory");
    report("a higher class nests, the same class waits", strings_equal(story, "lhHLt"));

    /* Of several pending ones the highest comes first. */
    memset(story, 0, sizeof story);
    chapters = 0;
    handle(LOW, on_low);
    count = 0;
    apic_interrupt_self(LOW_TOO);
    apic_interrupt_self(HIGH);
    asm volatile("sti; nop; nop; cli" ::: "memory");
    report("the highest of two comes first", strings_equal(story, "hHt"));

    /* The task priority register holds back its own class and everything below. */
    write32(APIC_TASK_PRIORITY, 0x40);
    apic_interrupt_self(LOW);
    asm volatile("sti; nop; nop; cli" ::: "memory");
    report("TPR holds its class back", count == 0);
    apic_interrupt_self(HIGH);
    asm volatile("sti; nop; nop; cli" ::: "memory");
    report("TPR lets a higher class pass", strings_equal(story, "hHthH") && count == 0);
    write32(APIC_TASK_PRIORITY, 0);
    asm volatile("sti; nop; nop; cli" ::: "memory");
    report("lowering TPR lets it come", count == 1);

    /* Asked for twice while pending, it comes once: a request is one bit. */
    apic_interrupt_self(LOW);
    apic_interrupt_self(LOW);
    asm volatile("sti; nop; nop; cli" ::: "memory");
    report("two requests of one vector are one", count == 2);
}

/* ---- from outside ---- */

static void on_pit(struct Frame *frame)
{
    (void)frame;
    count++;
    apic_end_of_interrupt();
}

static void through_the_io_apic(void)
{
    handle(PIT_VECTOR, on_pit);
    count = 0;
    start_pit(1000);
    ioapic_route(TIMER_GSI, PIT_VECTOR);
    for (u32 i = 0; i < 3; i++)
        wait_for_interrupt();
    ioapic_mask(TIMER_GSI);
    report("an edge at an I/O APIC pin", count == 3);
}

#define PIC_READ_REQUESTS 0b00001010    /* OCW3: the next read of the command port gives IRR */
#define PIC_READ_IN_SERVICE 0b00001011
static u32 pic_ticks, spurious;

static void on_pic_tick(struct Frame *frame)
{
    (void)frame;
    pic_ticks++;
    outb(PIC_MASTER, PIC_READ_IN_SERVICE);
    count = inb(PIC_MASTER);
    end_of_interrupt(IRQ_TIMER);
}

static void on_irq7(struct Frame *frame)
{
    /* Line 7 also means "there was something, but it is gone". Then it is not in service, and wants no EOI. */
    (void)frame;
    outb(PIC_MASTER, PIC_READ_IN_SERVICE);
    if (inb(PIC_MASTER) & 1 << 7)
        end_of_interrupt(7);
    else
        spurious++;
}

static void through_the_pic(void)
{
    handle(IRQ_VECTOR + IRQ_TIMER, on_pic_tick);
    handle(IRQ_VECTOR + 7, on_irq7);

    /* The local APIC passes the 8259 through on LINT0, in ExtINT mode. */
    write32(APIC_LINT0, 0b111 << 8);
    unmask_irq(IRQ_TIMER);
    wait_for_interrupt();
    report("an interrupt by way of the 8259", pic_ticks == 1);
    report("8259: in service until the end of interrupt", count & 1 << IRQ_TIMER);

    /* Wait, with IF = 0, until the line asks again; then mask it while it asks. */
    outb(PIC_MASTER, PIC_READ_REQUESTS);
    while (!(inb(PIC_MASTER) & 1 << IRQ_TIMER))
        ;
    report("8259: a request waits for IF", pic_ticks == 1);
    mask_irq(IRQ_TIMER);
    asm volatile("sti; nop; nop; cli" ::: "memory");
    report("8259: masked while asking, it does not come (or as spurious IRQ 7)", pic_ticks == 1 && spurious <= 1);
}

void main(void)
{
    handle(READ_FLAGS, on_read_flags);
    remap_pics();
    gates();
    stack_segment_shadow();
    if (!cpu_has(CPUID_EDX_APIC)) {
        report_skip("shadows and priorities", "CPUID does not list an APIC");
        return;
    }
    apic_enable();
    sti_shadow();
    priorities();
    through_the_io_apic();
    through_the_pic();
}
