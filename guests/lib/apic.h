/* Local APIC and I/O APIC registers (SDM volume 3A, chapter 10; Intel 82093AA data sheet). */
#pragma once
#include "cpu.h"
#include "../abi/machine_map.h"

#define APIC_ID (LAPIC_BASE + 0x020)
#define APIC_VERSION (LAPIC_BASE + 0x030)
#define APIC_TASK_PRIORITY (LAPIC_BASE + 0x080)
#define APIC_END_OF_INTERRUPT (LAPIC_BASE + 0x0B0)
#define APIC_SPURIOUS (LAPIC_BASE + 0x0F0)
#define APIC_IN_SERVICE (LAPIC_BASE + 0x100)            /* eight registers of 32 vectors, 0x10 apart */
#define APIC_REQUEST (LAPIC_BASE + 0x200)
#define APIC_COMMAND (LAPIC_BASE + 0x300)
#define APIC_TIMER (LAPIC_BASE + 0x320)
#define APIC_LINT0 (LAPIC_BASE + 0x350)
#define APIC_LINT1 (LAPIC_BASE + 0x360)
#define APIC_ERROR (LAPIC_BASE + 0x370)
#define APIC_INITIAL_COUNT (LAPIC_BASE + 0x380)
#define APIC_CURRENT_COUNT (LAPIC_BASE + 0x390)
#define APIC_DIVIDE (LAPIC_BASE + 0x3E0)

#define APIC_ENABLED 0x100                              /* in APIC_SPURIOUS */
#define APIC_TO_SELF 0x00044000                         /* in APIC_COMMAND: shorthand self, assert, fixed */
#define APIC_MASKED 0x00010000                          /* in the local vector table */
#define APIC_PERIODIC 0x00020000
#define APIC_DIVIDE_BY_16 0b0011

#define SPURIOUS_VECTOR 0xFF

static inline bool apic_bit(u32 registers, u8 vector)
{
    return read32(registers + (vector >> 5) * 0x10) >> (vector & 31) & 1;
}

static inline void apic_enable(void)
{
    write32(APIC_TASK_PRIORITY, 0);
    write32(APIC_LINT0, APIC_MASKED);
    write32(APIC_LINT1, APIC_MASKED);
    write32(APIC_SPURIOUS, APIC_ENABLED | SPURIOUS_VECTOR);
}
static inline void apic_end_of_interrupt(void) { write32(APIC_END_OF_INTERRUPT, 0); }
static inline void apic_interrupt_self(u8 vector) { write32(APIC_COMMAND, APIC_TO_SELF | vector); }

/* The I/O APIC is a window: write a register's number, then read or write its value. */
#define IOAPIC_SELECT (IOAPIC_BASE + 0x00)
#define IOAPIC_WINDOW (IOAPIC_BASE + 0x10)
#define IOAPIC_REG_ID 0x00
#define IOAPIC_REG_VERSION 0x01
#define IOAPIC_REDIRECTION(pin) (0x10 + 2 * (pin))
#define IOAPIC_MASKED 0x00010000

static inline u32 ioapic_read(u8 number) { write32(IOAPIC_SELECT, number); return read32(IOAPIC_WINDOW); }
static inline void ioapic_write(u8 number, u32 value) { write32(IOAPIC_SELECT, number); write32(IOAPIC_WINDOW, value); }
/* Pin -> vector, fixed delivery, physical destination APIC 0, edge, active high */
static inline void ioapic_route(u32 pin, u8 vector)
{
    ioapic_write(IOAPIC_REDIRECTION(pin) + 1, 0);
    ioapic_write(IOAPIC_REDIRECTION(pin), vector);
}
static inline void ioapic_mask(u32 pin) { ioapic_write(IOAPIC_REDIRECTION(pin), IOAPIC_MASKED); }
