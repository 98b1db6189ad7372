/* Builds the GDT and the TSS and loads them. */
#include "segments.h"
#include "string.h"

static u64 gdt[16];
struct TaskState task_state;

void set_descriptor(u16 selector, u32 base, u32 limit, u8 access)
{
    /* Limits above 1 MiB are counted in pages (G); code and data are 32-bit (D/B), system segments have no size. */
    u64 granular = limit > 0xFFFFF;
    u64 size = access & 0b00010000 ? 1 : 0;
    if (granular)
        limit >>= 12;
    gdt[selector / 8] = (u64)(limit & 0xFFFF) | (u64)(base & 0xFFFFFF) << 16 | (u64)access << 40
                      | (u64)(limit >> 16 & 0xF) << 48 | size << 54 | granular << 55 | (u64)(base >> 24) << 56;
}

void load_segments(void)
{
    set_descriptor(KERNEL_CODE, 0, 0xFFFFFFFF, PRESENT | CODE_SEGMENT);
    set_descriptor(KERNEL_DATA, 0, 0xFFFFFFFF, PRESENT | DATA_SEGMENT);
    set_descriptor(USER_CODE, 0, 0xFFFFFFFF, PRESENT | DPL3 | CODE_SEGMENT);
    set_descriptor(USER_DATA, 0, 0xFFFFFFFF, PRESENT | DPL3 | DATA_SEGMENT);
    set_descriptor(TASK_STATE, (u32)&task_state, sizeof task_state - 1, PRESENT | AVAILABLE_TSS);

    task_state.ss0 = KERNEL_DATA;
    task_state.io_map_base = __builtin_offsetof(struct TaskState, io_map);
    memset(task_state.io_map, 0xFF, sizeof task_state.io_map);

    struct { u16 limit; u32 base; } __attribute__((packed)) gdtr = { sizeof gdt - 1, (u32)gdt };
    asm volatile("lgdt %0\n"
                 /* LGDT changes no segment: CS is reloaded by a far jump, the others by moves. */
                 "ljmp %1, $1f\n"
                 "1: movw %w2, %%ds; movw %w2, %%es; movw %w2, %%fs; movw %w2, %%gs; movw %w2, %%ss\n"
                 "ltr %w3"
                 :: "m"(gdtr), "i"(KERNEL_CODE), "r"(KERNEL_DATA), "r"(TASK_STATE) : "memory");
}
