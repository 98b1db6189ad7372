/* The machine is a PC, and ours alone: tables are memory, and every instruction is allowed. */
#include "../abi/machine_map.h"
#include "../lib/irq.h"
#include "../lib/multiboot.h"
#include "../lib/report.h"
#include "../lib/segments.h"
#include "../lib/string.h"
#include "machine.h"
#include "kernel.h"

/* ---- in ---- */

const u32 user_code_selector = USER_CODE, user_data_selector = USER_DATA;

static void on_exception(struct Frame *frame)
{
    kernel_trap(frame, frame->vector == PAGE_FAULT ? read_cr2() : 0);
}

static void on_timer(struct Frame *frame)
{
    end_of_interrupt(IRQ_TIMER);
    kernel_ticks(frame, 1);
}

void main(const struct Multiboot *information)
{
    extern char image_end[];
    for (u32 vector = 0; vector < 32; vector++)
        handle(vector, on_exception);
    handle(0x80, on_exception);
    set_gate(0x80, INTERRUPT_GATE | FROM_USER);
    kernel(command_line(information), ((u32)image_end + PAGE_SIZE - 1) >> PAGE_SHIFT,
           (information->upper_kib + 1024) / (PAGE_SIZE / 1024));
}

void machine_start_clock(void)
{
    handle(IRQ_VECTOR + IRQ_TIMER, on_timer);
    remap_pics();
    start_pit(TICKS_PER_SECOND);
    unmask_irq(IRQ_TIMER);
}

/* ---- out ---- */

void machine_write(const char *text, u32 length)
{
    for (; length; length--)
        print("%c", *text++);
}

void machine_end(u8 verdict)
{
    outb(DEBUG_EXIT_PORT, verdict);
    for (;;)
        asm volatile("cli; hlt");
}

u64 machine_time(void) { return rdtsc(); }
void machine_idle(void) { wait_for_interrupt(); }
void machine_null(void) {}
u32 machine_pages_lent(void) { return 0; }

/* ---- page tables ---- */

u32 machine_map(u32 end_page)
{
    u32 top = page_get(), directory = page_get();
    u64 *entries = page_address(directory);
    memset(page_address(top), 0, PAGE_SIZE);
    memset(entries, 0, PAGE_SIZE);
    *(u64 *)page_address(top) = pte_value(directory, PAGE_PRESENT);
    for (u32 page = 0; page < end_page; page++) {
        if (page % ENTRIES == 0) {
            u32 table = page_get();
            memset(page_address(table), 0, PAGE_SIZE);
            entries[page / ENTRIES] = pte_value(table, PAGE_PRESENT | PAGE_WRITABLE | PAGE_USER);
        }
        u64 *table = page_address(entries[page / ENTRIES] >> PAGE_SHIFT);
        table[page % ENTRIES] = pte_value(page, kernel_page_bits(page));
    }
    write_cr4(read_cr4() | CR4_PAE);
    write_cr3(top << PAGE_SHIFT);
    write_cr0(read_cr0() | CR0_PG | CR0_WP);
    return top;
}

u64 pte_value(u32 page, u32 bits) { return (u64)page << PAGE_SHIFT | bits; }
void pte_set(u64 *entry, u64 value) { *(volatile u64 *)entry = value; }

void pte_commit(u32 flush)
{
    if (flush == FLUSH_EVERYTHING)
        write_cr3(read_cr3());
    else if (flush != FLUSH_NOTHING)
        invlpg(flush);
}

void table_make(u32 page) { (void)page; }
void table_drop(u32 page) { (void)page; }
void space_make(u32 top) { (void)top; }
void space_drop(u32 top) { (void)top; }

void machine_switch(u32 top, u32 stack_end)
{
    task_state.esp0 = stack_end;
    write_cr3(top << PAGE_SHIFT);
}
