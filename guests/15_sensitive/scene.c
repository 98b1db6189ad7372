/* Builds the tables and loads them. The library has its own, which we leave behind: only its TSS is used further,
 * because run_user() keeps the kernel's stack in it. */
#include "../abi/machine_map.h"
#include "../lib/interrupts.h"
#include "../lib/segments.h"
#include "../lib/string.h"
#include "scene.h"

#define LDT_SEGMENT 0b00000010
#define CALL_GATE 0b00001100

static u64 *const gdt = (u64 *)GDT_AT, *const idt = (u64 *)IDT_AT, *const ldt = (u64 *)LDT_AT;
extern const char vectors[256][16];

/* As after a first use, which sets this bit; not every emulator remembers to. */
#define ACCESSED 0b00000001

/* Up to 1 MiB the limit counts bytes, above it pages (G); code and data are 32-bit (SDM volume 3A, 3.4.5). */
static void describe(u16 selector, u32 base, u32 limit, u8 access)
{
    u64 granular = limit > 0xFFFFF;
    u64 size = access & 0b00010000 ? 1 : 0;
    if (granular)
        limit >>= 12;
    gdt[selector / 8] = (u64)(limit & 0xFFFF) | (u64)(base & 0xFFFFFF) << 16 | (u64)access << 40
                      | (u64)(limit >> 16 & 0xF) << 48 | size << 54 | granular << 55 | (u64)(base >> 24) << 56;
}

/* A gate in the IDT or the GDT (SDM volume 3A, 5.8.3 and 6.11) */
static u64 gate_to(const char *entry, u8 type)
{
    return (u64)((u32)entry & 0xFFFF) | (u64)KERNEL_CODE << 16 | (u64)type << 40 | (u64)((u32)entry >> 16) << 48;
}

static void allow_port(u16 port)
{
    task_state.io_map[port / 8] &= ~(1 << (port % 8));
}

static void load_gdt(void)
{
    struct { u16 limit; u32 base; } __attribute__((packed)) gdtr = { GDT_SIZE - 1, GDT_AT };
    asm volatile("lgdt %0\n"
                 "ljmp %1, $1f\n"
                 "1: movw %w2, %%ds; movw %w2, %%es; movw %w2, %%fs; movw %w2, %%gs; movw %w2, %%ss\n"
                 "ltr %w3\n"
                 "lldt %w4"
                 :: "m"(gdtr), "i"(KERNEL_CODE), "r"(KERNEL_DATA), "r"(OUR_TSS), "r"(OUR_LDT) : "memory");
}

void set_scene(const char *gate, const char *landing, const char *look)
{
    memset(gdt, 0, GDT_SIZE);
    describe(KERNEL_CODE, 0, 0xFFFFFFFF, PRESENT | CODE_SEGMENT | ACCESSED);
    describe(KERNEL_DATA, 0, 0xFFFFFFFF, PRESENT | DATA_SEGMENT | ACCESSED);
    describe(USER_CODE, 0, 0xFFFFFFFF, PRESENT | DPL3 | CODE_SEGMENT | ACCESSED);
    describe(USER_DATA, 0, 0xFFFFFFFF, PRESENT | DPL3 | DATA_SEGMENT | ACCESSED);
    describe(KERNEL_ALIAS, 0, 0xFFFFFFFF, PRESENT | CODE_SEGMENT | ACCESSED);
    describe(USER_ALIAS, 0, 0xFFFFFFFF, PRESENT | DPL3 | CODE_SEGMENT | ACCESSED);
    describe(KERNEL_WINDOW, WINDOW_AT, 0xFFF, PRESENT | DATA_SEGMENT | ACCESSED);
    describe(USER_WINDOW, WINDOW_AT, 0xFFF, PRESENT | DPL3 | DATA_SEGMENT | ACCESSED);
    describe(OUR_LDT, LDT_AT, LDT_SIZE - 1, PRESENT | LDT_SEGMENT);
    describe(OUR_TSS, (u32)&task_state, sizeof task_state - 1, PRESENT | AVAILABLE_TSS);
    gdt[USER_CALL_GATE / 8] = gate_to(gate, PRESENT | DPL3 | CALL_GATE);
    memset(ldt, 0, LDT_SIZE);
    write32(WINDOW_AT, WINDOW_WORD);

    for (u32 vector = 0; vector < 256; vector++)
        idt[vector] = gate_to(vectors[vector], INTERRUPT_GATE);
    idt[LANDING] = gate_to(landing, INTERRUPT_GATE | FROM_USER);
    idt[KERNEL_LANDING] = gate_to(landing, INTERRUPT_GATE);
    idt[LOOK] = gate_to(look, INTERRUPT_GATE | FROM_USER);
    idt[EXIT] = gate_to(vectors[EXIT], INTERRUPT_GATE | FROM_USER);

    /* Ring 3 marks its instructions, and waits for the timer, as ring 0 does. */
    allow_port(POST_PORT);
    allow_port(PIC_MASTER);
    allow_port(PIC_MASTER + 1);
    allow_port(PIT_BASE);
    allow_port(PIT_BASE + 3);

    struct { u16 limit; u32 base; } __attribute__((packed)) idtr = { 256 * 8 - 1, IDT_AT };
    asm volatile("lidt %0" :: "m"(idtr) : "memory");
    load_gdt();
}
