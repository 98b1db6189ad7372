/* Every clock of a PC: the time stamp counter, the 8254 (read back, one-shot, square wave), the CMOS clock, the ACPI
 * timer, and the local APIC's timer; by polling, through the 8259s, and through the I/O APIC. Nothing measured here
 * is printed: it would differ from run to run on a real machine. */
#include "../lib/apic.h"
#include "../lib/interrupts.h"
#include "../lib/irq.h"
#include "../lib/report.h"

#define TIMER_VECTOR 0x40
#define PIT_VECTOR 0x41

/* 8254 (Intel data sheet): control word = channel, access, mode, binary */
#define PIT_CHANNEL0 (PIT_BASE + 0)
#define PIT_CHANNEL2 (PIT_BASE + 2)
#define PIT_CONTROL (PIT_BASE + 3)
#define PIT_READ_BACK_STATUS(channel) (0b11100000 | 2 << (channel))
#define PIT_READ_BACK_BOTH(channel) (0b11000000 | 2 << (channel))
#define GATE2 0b00000001                /* system control port B: gate and speaker, in; OUT of channel 2, out */
#define SPEAKER 0b00000010
#define OUT2 0b00100000

static volatile u32 ticks, apic_ticks;

static void on_pic_tick(struct Frame *frame)
{
    (void)frame;
    ticks++;
    end_of_interrupt(IRQ_TIMER);
}

static void on_ioapic_tick(struct Frame *frame)
{
    (void)frame;
    ticks++;
    apic_end_of_interrupt();
}

static void on_apic_timer(struct Frame *frame)
{
    (void)frame;
    apic_ticks++;
    apic_end_of_interrupt();
}

static u16 pit_count(u32 channel)
{
    /* Latch, then low and high byte: without the latch the two halves would not belong together. */
    outb(PIT_CONTROL, channel << 6);
    u8 low = inb(PIT_BASE + channel);
    return low | inb(PIT_BASE + channel) << 8;
}

/* Channel 2 as a stop watch: mode 0 counts down once, OUT rises at the end. No interrupt is needed. */
static void start_stopwatch(u16 count)
{
    outb(SYSTEM_CONTROL_B, (inb(SYSTEM_CONTROL_B) & ~SPEAKER) | GATE2);
    outb(PIT_CONTROL, 0b10110000);
    outb(PIT_CHANNEL2, count & 0xFF);
    outb(PIT_CHANNEL2, count >> 8);
}
static bool stopwatch_done(void) { return inb(SYSTEM_CONTROL_B) & OUT2; }
#define TEN_MILLISECONDS (PIT_HZ / 100)

/* ---- time stamp counter ---- */

static void time_stamp_counter(void)
{
    if (!cpu_has(CPUID_EDX_TSC)) {
        report_skip("TSC", "CPUID does not list it");
        return;
    }
    bool monotonic = true;
    u64 last = rdtsc(), first = last;
    for (u32 i = 0; i < 1000; i++) {
        u64 now = rdtsc();
        monotonic &= now >= last;
        last = now;
    }
    report("TSC never goes back", monotonic);
    report("TSC goes on", last > first);
    start_stopwatch(TEN_MILLISECONDS);
    while (!stopwatch_done())
        ;
    report("TSC goes on while we wait for another clock", rdtsc() > last);
}

/* ---- 8254 ---- */

static void interval_timer(void)
{
    /* Read-back of the programming: mode 2, both bytes, binary */
    start_pit(1000);
    outb(PIT_CONTROL, PIT_READ_BACK_STATUS(0));
    report("8254 status says what was programmed", (inb(PIT_CHANNEL0) & 0b00111111) == 0b00110100);

    /* Counts run down, within the period. */
    bool within = true, moved = false;
    u16 first = pit_count(0);
    for (u32 i = 0; i < 100; i++) {
        u16 count = pit_count(0);
        within &= count >= 1 && count <= PIT_HZ / 1000;
        moved |= count != first;
    }
    report("8254 channel 0 counts inside its period", within && moved);

    /* Status and count in one command come out in that order. */
    outb(PIT_CONTROL, PIT_READ_BACK_BOTH(0));
    u8 status = inb(PIT_CHANNEL0), low = inb(PIT_CHANNEL0), high = inb(PIT_CHANNEL0);
    u16 count = low | high << 8;
    report("8254 read-back of status and count",
           (status & 0b00111111) == 0b00110100 && count >= 1 && count <= PIT_HZ / 1000);

    start_stopwatch(TEN_MILLISECONDS);
    bool early = stopwatch_done();
    u16 previous = pit_count(2);
    bool down = true;
    while (!stopwatch_done()) {
        u16 now = pit_count(2);
        if (stopwatch_done())
            break;
        down &= now <= previous;
        previous = now;
    }
    report("8254 channel 2: OUT is low, the count falls, OUT rises", !early && down);

    /* The gate stops the count. */
    start_stopwatch(60000);
    outb(SYSTEM_CONTROL_B, inb(SYSTEM_CONTROL_B) & ~(GATE2 | SPEAKER));
    u16 held = pit_count(2);
    for (u32 i = 0; i < 50; i++)
        inb(POST_PORT);
    if (pit_count(2) == held)
        report("8254 channel 2: a closed gate holds the count", true);
    else
        report_skip("8254 channel 2: a closed gate holds the count", "this 8254 counts on, as QEMU's does");

    /* Through the 8259s */
    handle(IRQ_VECTOR + IRQ_TIMER, on_pic_tick);
    ticks = 0;
    unmask_irq(IRQ_TIMER);
    while (ticks < 5)
        wait_for_interrupt();
    mask_irq(IRQ_TIMER);
    report("8254 ticks through the 8259", ticks == 5);
}

/* ---- CMOS clock (Motorola MC146818A) ---- */

static u8 cmos(u8 number)
{
    outb(CMOS_BASE, number);
    return inb(CMOS_BASE + 1);
}

static u8 rtc_field(u8 number)
{
    /* Register B bit 2: binary, else two decimal digits */
    u8 value = cmos(number);
    return cmos(0x0B) & 0b00000100 ? value : (value >> 4) * 10 + (value & 15);
}

static void real_time_clock(void)
{
    /* Register A bit 7, update in progress: the fields may be half changed. */
    while (cmos(0x0A) & 0b10000000)
        ;
    u8 second = rtc_field(0), minute = rtc_field(2), hour = rtc_field(4);
    u8 day = rtc_field(7), month = rtc_field(8), year = rtc_field(9);
    report("CMOS clock: the time is one", second < 60 && minute < 60 && hour < 24);
    report("CMOS clock: the date is one", day >= 1 && day <= 31 && month >= 1 && month <= 12 && year < 100);
    report("CMOS clock: the battery is good", cmos(0x0D) & 0b10000000);
    cmos(0x0F);
    outb(CMOS_BASE, 0x0F);
    outb(CMOS_BASE + 1, 0x5A);
    report("CMOS memory keeps a byte", cmos(0x0F) == 0x5A);
}

/* ---- ACPI timer: 24 bits at 3.579545 MHz ---- */

static void acpi_timer(void)
{
    start_stopwatch(TEN_MILLISECONDS);
    u32 begin = inl(ACPI_PM_TIMER) & 0xFFFFFF;
    while (!stopwatch_done())
        ;
    u32 elapsed = (inl(ACPI_PM_TIMER) - begin) & 0xFFFFFF;
    /* Both clocks come from one 14.31818 MHz crystal: three ACPI ticks for one of the 8254. */
    report("the ACPI timer agrees with the 8254", elapsed >= 3 * TEN_MILLISECONDS - 300);
}

/* ---- APICs ---- */

static void local_apic_timer(void)
{
    apic_enable();
    report("local APIC: base address and enable bit in its MSR",
           (rdmsr(MSR_APIC_BASE) & 0xFFFFF800) == (LAPIC_BASE | 0x800));
    report("local APIC: an integrated one", (read32(APIC_VERSION) & 0xF0) == 0x10);

    handle(TIMER_VECTOR, on_apic_timer);
    write32(APIC_DIVIDE, APIC_DIVIDE_BY_16);

    /* Masked, it still counts. */
    write32(APIC_TIMER, APIC_MASKED | TIMER_VECTOR);
    write32(APIC_INITIAL_COUNT, 0xFFFFFFFF);
    u32 first = read32(APIC_CURRENT_COUNT);
    start_stopwatch(TEN_MILLISECONDS);
    while (!stopwatch_done())
        ;
    u32 per_ten_milliseconds = first - read32(APIC_CURRENT_COUNT);
    report("local APIC timer: the current count falls", per_ten_milliseconds > 0);

    /* One-shot: exactly one interrupt, then the count stays at zero. */
    apic_ticks = 0;
    write32(APIC_TIMER, TIMER_VECTOR);
    write32(APIC_INITIAL_COUNT, per_ten_milliseconds / 10);
    while (!apic_ticks)
        wait_for_interrupt();
    start_stopwatch(TEN_MILLISECONDS);
    sti();
    while (!stopwatch_done())
        ;
    cli();
    report("local APIC timer: one shot", apic_ticks == 1 && read32(APIC_CURRENT_COUNT) == 0);

    apic_ticks = 0;
    write32(APIC_TIMER, APIC_PERIODIC | TIMER_VECTOR);
    write32(APIC_INITIAL_COUNT, per_ten_milliseconds / 10);
    while (apic_ticks < 5)
        wait_for_interrupt();
    write32(APIC_INITIAL_COUNT, 0);
    report("local APIC timer: periodic", apic_ticks == 5);
    write32(APIC_TIMER, APIC_MASKED | TIMER_VECTOR);
}

static void io_apic(void)
{
    u32 version = ioapic_read(IOAPIC_REG_VERSION);
    report("I/O APIC: it has 24 pins", (version >> 16 & 0xFF) == IOAPIC_PINS - 1);
    ioapic_write(IOAPIC_REDIRECTION(5), IOAPIC_MASKED | 0x77);
    report("I/O APIC: a redirection entry keeps what we write",
           (ioapic_read(IOAPIC_REDIRECTION(5)) & 0x1FFFF) == (IOAPIC_MASKED | 0x77));

    /* ISA line 0 arrives at pin 2: the one line that every PC wires crosswise. */
    handle(PIT_VECTOR, on_ioapic_tick);
    ticks = 0;
    start_pit(1000);
    ioapic_route(TIMER_GSI, PIT_VECTOR);
    while (ticks < 5)
        wait_for_interrupt();
    ioapic_mask(TIMER_GSI);
    report("8254 ticks through the I/O APIC", ticks == 5);
}

void main(void)
{
    remap_pics();
    time_stamp_counter();
    interval_timer();
    real_time_clock();
    acpi_timer();
    if (cpu_has(CPUID_EDX_APIC)) {
        local_apic_timer();
        io_apic();
    } else {
        report_skip("local APIC and I/O APIC", "CPUID does not list an APIC");
    }
}
