/* Paging, from the first page table to PAE and NX. The kernel lies in the first 4 MiB, which always map to
 * themselves; experiments take place at WINDOW, 1 GiB, where nothing is until we put it there. */
#include "../lib/interrupts.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "../lib/string.h"
#include "../lib/user.h"

#define WINDOW 0x40000000u
#define SECOND (WINDOW + PAGE_SIZE)
#define LARGE_WINDOW 0x00800000u
#define RECURSIVE 1023u
#define TABLES 0xFFC00000u              /* where the recursive entry shows the page tables ... */
#define DIRECTORY 0xFFFFF000u           /* ... and the directory itself */
#define ALL (PAGE_PRESENT | PAGE_WRITABLE | PAGE_USER)

static u32 directory[1024] PAGE_TABLE, low_table[1024] PAGE_TABLE, window_table[1024] PAGE_TABLE;
static u8 frame_a[PAGE_SIZE] PAGE_TABLE, frame_b[PAGE_SIZE] PAGE_TABLE;
#define MARK_A 0xAAAA0001u
#define MARK_B 0xBBBB0002u

/* The window's first entries */
#define FIRST_ENTRY window_table[0]
#define SECOND_ENTRY window_table[1]

static volatile u32 *word(u32 address)
{
    return (volatile u32 *)address;
}

static void map(volatile u32 *entry, const void *frame, u32 bits, u32 address)
{
    *entry = (u32)frame | bits;
    invlpg(address);
}

/* ---- demand-zero memory: the page fault as a service ---- */

static u32 demanded, demand_error, demand_address;

static void on_demand(struct Frame *frame)
{
    demanded++;
    demand_error = frame->error;
    demand_address = read_cr2();
    memset(frame_a, 0, PAGE_SIZE);
    FIRST_ENTRY = (u32)frame_a | ALL;           /* it was not present, so no TLB can know it: no INVLPG needed */
}

static void demand_zero(void)
{
    handle(PAGE_FAULT, on_demand);
    memset(frame_a, 0xCC, PAGE_SIZE);
    u32 value = *word(WINDOW + 0x234);
    report("demand-zero on read", demanded == 1 && value == 0 && demand_error == 0 && demand_address == WINDOW + 0x234);

    map(&FIRST_ENTRY, 0, 0, WINDOW);
    memset(frame_a, 0xCC, PAGE_SIZE);
    *word(WINDOW + 0x238) = 5;
    report("demand-zero on write",
           demanded == 2 && *word((u32)frame_a + 0x238) == 5 && *word(WINDOW + 0x234) == 0
           && demand_error == FAULT_WRITE && demand_address == WINDOW + 0x238);
    handle(PAGE_FAULT, note_exception);
}

/* ---- accessed and dirty: what the CPU writes into our tables ---- */

static void accessed_and_dirty(void)
{
    directory[WINDOW >> 22] &= ~PAGE_ACCESSED;
    map(&FIRST_ENTRY, frame_a, ALL, WINDOW);
    write_cr3(read_cr3());
    report("a fresh page is neither accessed nor dirty", !(FIRST_ENTRY & (PAGE_ACCESSED | PAGE_DIRTY)));
    (void)*word(WINDOW);
    report("a read sets accessed, here and in the directory",
           (FIRST_ENTRY & (PAGE_ACCESSED | PAGE_DIRTY)) == PAGE_ACCESSED && directory[WINDOW >> 22] & PAGE_ACCESSED);
    *word(WINDOW) = MARK_A;
    report("a write sets dirty", FIRST_ENTRY & PAGE_DIRTY);

    /* A pager's clock: clear, flush, look again. */
    map(&FIRST_ENTRY, frame_a, ALL, WINDOW);
    *word(WINDOW) = MARK_A;
    report("after clearing and INVLPG they are set again", (FIRST_ENTRY & 0xFFF) == (ALL | PAGE_ACCESSED | PAGE_DIRTY));
}

/* ---- protection ---- */

static u8 user_stack[PAGE_SIZE] PAGE_TABLE;

static void reading_program(void)
{
    ATTEMPT("movl 0x40000000, %%eax");
    asm volatile("int $0x80");
}

static void writing_program(void)
{
    ATTEMPT("movl %%eax, 0x40000000");
    asm volatile("int $0x80");
}

static void on_exit(struct Frame *frame)
{
    (void)frame;
    leave_user(0);
}

static bool user_faults(void (*program)(void), u32 error)
{
    run_user(program, user_stack + sizeof user_stack, EFLAGS_FIXED);
    return caught_fault(PAGE_FAULT, error) && caught.cr2 == WINDOW;
}

static void protection(void)
{
    /* Ring 0 ignores read-only pages, until CR0.WP; copy-on-write kernels live on that. */
    map(&FIRST_ENTRY, frame_a, PAGE_PRESENT | PAGE_USER, WINDOW);
    write_cr0(read_cr0() & ~CR0_WP);
    ATTEMPT("movl $1, 0x40000000");
    report("WP off: ring 0 writes to a read-only page", caught.count == 0 && *word((u32)frame_a) == 1);
    write_cr0(read_cr0() | CR0_WP);
    map(&FIRST_ENTRY, frame_a, PAGE_PRESENT | PAGE_USER, WINDOW);
    ATTEMPT("movl $2, 0x40000000");
    report("WP on: it faults",
           caught_fault(PAGE_FAULT, FAULT_PRESENT | FAULT_WRITE) && caught.cr2 == WINDOW && *word((u32)frame_a) == 1);
    report("a refused write does not make the page dirty", !(FIRST_ENTRY & PAGE_DIRTY));

    /* Ring 3 sees less: only PAGE_USER, on every level. */
    set_gate(0x80, INTERRUPT_GATE | FROM_USER);
    handle(0x80, on_exit);
    report("ring 3 may not write to a read-only page",
           user_faults(writing_program, FAULT_PRESENT | FAULT_WRITE | FAULT_USER));
    map(&FIRST_ENTRY, frame_a, PAGE_PRESENT | PAGE_WRITABLE, WINDOW);
    report("ring 3 may not read the kernel's page", user_faults(reading_program, FAULT_PRESENT | FAULT_USER));
    map(&FIRST_ENTRY, 0, 0, WINDOW);
    report("ring 3 at an absent page", user_faults(reading_program, FAULT_USER));
    map(&FIRST_ENTRY, frame_a, ALL, WINDOW);
    directory[WINDOW >> 22] &= ~PAGE_USER;
    write_cr3(read_cr3());
    report("one supervisor level is enough", user_faults(reading_program, FAULT_PRESENT | FAULT_USER));
    directory[WINDOW >> 22] |= PAGE_USER;
    directory[WINDOW >> 22] &= ~PAGE_WRITABLE;
    write_cr3(read_cr3());
    report("one read-only level is enough", user_faults(writing_program, FAULT_PRESENT | FAULT_WRITE | FAULT_USER));
    directory[WINDOW >> 22] |= PAGE_WRITABLE;
    write_cr3(read_cr3());
}

/* ---- the TLB is ours to keep honest ---- */

static void translation_changes(void)
{
    *word((u32)frame_a) = MARK_A;
    *word((u32)frame_b) = MARK_B;
    map(&FIRST_ENTRY, frame_a, ALL, WINDOW);
    map(&SECOND_ENTRY, frame_a, ALL, SECOND);
    *word(SECOND + 4) = 77;
    report("two addresses, one frame", *word(WINDOW) == MARK_A && *word(WINDOW + 4) == 77);
    map(&FIRST_ENTRY, frame_b, ALL, WINDOW);
    report("INVLPG: a new frame at the old address", *word(WINDOW) == MARK_B && *word(SECOND) == MARK_A);
    FIRST_ENTRY = (u32)frame_a | ALL;
    SECOND_ENTRY = (u32)frame_b | ALL;
    write_cr3(read_cr3());
    report("reloading CR3 forgets everything", *word(WINDOW) == MARK_A && *word(SECOND) == MARK_B);
    map(&SECOND_ENTRY, 0, 0, SECOND);
    ATTEMPT("movl 0x40001000, %%eax");
    report("unmapping with INVLPG is final", caught_fault(PAGE_FAULT, 0) && caught.cr2 == SECOND);

    /* An access across the border of two frames that are no neighbours. */
    map(&SECOND_ENTRY, frame_b, ALL, SECOND);
    *word(SECOND - 2) = 0x11223344;
    report("a word across two pages", *(volatile u16 *)(frame_a + PAGE_SIZE - 2) == 0x3344
           && *(volatile u16 *)frame_b == 0x1122);

    /* Moving a whole table under the window */
    static u32 other_table[1024] PAGE_TABLE;
    other_table[0] = (u32)frame_b | ALL;
    *word((u32)frame_b) = MARK_B;
    directory[WINDOW >> 22] = (u32)other_table | ALL;
    write_cr3(read_cr3());
    report("another page table in the directory", *word(WINDOW) == MARK_B);
    directory[WINDOW >> 22] = (u32)window_table | ALL;
    write_cr3(read_cr3());
}

static void recursive_mapping(void)
{
    /* The directory is also its own page table: the last 4 MiB show all tables, the last page shows the directory. */
    volatile u32 *entry = word(TABLES + (WINDOW >> 12) * 4);
    report("recursive: the directory sees itself", *word(DIRECTORY + RECURSIVE * 4) == directory[RECURSIVE]
           && (directory[RECURSIVE] & ~0xFFFu) == (u32)directory);
    report("recursive: a table entry", (*entry & ~0xFFFu) == (FIRST_ENTRY & ~0xFFFu));
    *word((u32)frame_a) = MARK_A;
    *word((u32)frame_b) = MARK_B;
    map(entry, frame_b, ALL, WINDOW);
    bool b = *word(WINDOW) == MARK_B;
    map(entry, frame_a, ALL, WINDOW);
    report("recursive: changing an entry through it", b && *word(WINDOW) == MARK_A);
}

static void large_pages(void)
{
    if (!cpu_has(CPUID_EDX_PSE)) {
        report_skip("4 MiB pages", "CPUID does not list PSE");
        return;
    }
    write_cr4(read_cr4() | CR4_PSE);
    directory[LARGE_WINDOW >> 22] = 0 | ALL | PAGE_LARGE;
    *word((u32)frame_a + 8) = 1234;
    report("4 MiB page: an alias of the first 4 MiB", *word(LARGE_WINDOW + (u32)frame_a + 8) == 1234);
    report("4 MiB page: accessed, not dirty",
           (directory[LARGE_WINDOW >> 22] & (PAGE_ACCESSED | PAGE_DIRTY)) == PAGE_ACCESSED);
    *word(LARGE_WINDOW + (u32)frame_a + 8) = 4321;
    report("4 MiB page: dirty after a write",
           directory[LARGE_WINDOW >> 22] & PAGE_DIRTY && *word((u32)frame_a + 8) == 4321);
    directory[LARGE_WINDOW >> 22] = 0;
    invlpg(LARGE_WINDOW);
    ATTEMPT("movl 0x00800000, %%eax");
    report("4 MiB page: gone after one INVLPG", caught_fault(PAGE_FAULT, 0));
}

/* ---- PAE: three levels, 64-bit entries, 2 MiB pages, and room for a bit 63 ---- */

static u64 pointers[4] __attribute__((aligned(32)));
static u64 wide_directory[1024 / 2] PAGE_TABLE, window_directory[512] PAGE_TABLE, wide_table[512] PAGE_TABLE;

static void pae(void)
{
    if (!cpu_has(CPUID_EDX_PAE)) {
        report_skip("PAE", "CPUID does not list it");
        return;
    }
    /* Bits 31:30 of the address choose one of four pointers: the kernel is under the first, the window the second. */
    pointers[0] = (u32)wide_directory | PAGE_PRESENT;
    pointers[1] = (u32)window_directory | PAGE_PRESENT;
    wide_directory[0] = 0x000000 | ALL | PAGE_LARGE;
    wide_directory[1] = 0x200000 | ALL | PAGE_LARGE;
    window_directory[0] = (u32)wide_table | ALL;
    write_cr0(read_cr0() & ~CR0_PG);
    write_cr4((read_cr4() & ~CR4_PSE) | CR4_PAE);
    write_cr3((u32)pointers);
    write_cr0(read_cr0() | CR0_PG);
    report("PAE: the kernel runs from 2 MiB pages", true);

    ATTEMPT("movl 0x40000010, %%eax");
    report("PAE: absent page", caught_fault(PAGE_FAULT, 0) && caught.cr2 == WINDOW + 0x10);
    wide_table[0] = (u32)frame_b | ALL;
    *word((u32)frame_b) = MARK_B;
    report("PAE: three levels", *word(WINDOW) == MARK_B);
    report("PAE: accessed, not dirty", (wide_table[0] & (PAGE_ACCESSED | PAGE_DIRTY)) == PAGE_ACCESSED);
    *word(WINDOW) = 9;
    report("PAE: dirty", wide_table[0] & PAGE_DIRTY && *word((u32)frame_b) == 9);
    ATTEMPT("movl 0x80000000, %%eax");
    report("PAE: absent pointer", caught_fault(PAGE_FAULT, 0) && caught.cr2 == 0x80000000);

    if (!cpu_has_nx()) {
        report_skip("NX", "CPUID does not list it");
        return;
    }
    /* While EFER.NXE is off, bit 63 is reserved, and a reserved bit is a fault of its own kind. */
    frame_b[0] = 0xC3;                                          /* RET */
    wide_table[0] = (u32)frame_b | ALL | PAGE_NO_EXECUTE;
    invlpg(WINDOW);
    ATTEMPT("movl 0x40000000, %%eax");
    /* (The manual wants the present bit set beside the reserved one; QEMU 7.2 forgets it, so we do not look.) */
    report("NX is a reserved bit without EFER.NXE",
           caught.vector == PAGE_FAULT && (caught.error | FAULT_PRESENT) == (FAULT_PRESENT | FAULT_RESERVED));
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    invlpg(WINDOW);
    ATTEMPT("movl 0x40000000, %%eax");
    report("NX: reading is allowed", caught.count == 0);
    ATTEMPT_AFTER("movl $0x40000000, %%eax", "jmp *%%eax");
    report("NX: executing is not", caught.vector == PAGE_FAULT && caught.error == (FAULT_PRESENT | FAULT_FETCH)
           && caught.cr2 == WINDOW && caught.eip == WINDOW);
    wide_table[0] = (u32)frame_b | ALL;
    invlpg(WINDOW);
    ATTEMPT_AFTER("movl $0x40000000, %%eax", "call *%%eax");
    report("NX taken away: the code runs", caught.count == 0);
}

void main(void)
{
    /* Two levels: the directory covers 4 GiB, each table 4 MiB. */
    for (u32 i = 0; i < 1024; i++)
        low_table[i] = i * PAGE_SIZE | ALL;
    directory[0] = (u32)low_table | ALL;
    directory[WINDOW >> 22] = (u32)window_table | ALL;
    directory[RECURSIVE] = (u32)directory | PAGE_PRESENT | PAGE_WRITABLE;
    write_cr3((u32)directory);
    write_cr0(read_cr0() | CR0_PG);
    report("the kernel survives turning paging on", true);

    demand_zero();
    accessed_and_dirty();
    protection();
    translation_changes();
    recursive_mapping();
    large_pages();
    pae();
}
