/* Pages and address spaces. The kernel's memory is mapped to itself in all of them (top entry 0, one directory for
 * all); a process has a directory and tables of its own under top entry 1. Entries 2 and 3 stay empty. */
#include "../lib/string.h"
#include "kernel.h"

/* ---- pages ---- */

static u16 owners[KERNEL_END / PAGE_SIZE];      /* 0: the page is free */
static u32 first, end, rover, count_free;
static u32 zero_page;                           /* mapped for whatever was never written; owners not counted */

void pages_start(u32 first_page, u32 end_page)
{
    first = rover = first_page;
    end = end_page;
    count_free = end - first;
}

u32 page_get(void)
{
    if (!count_free)
        return 0;
    while (owners[rover])
        rover = rover + 1 < end ? rover + 1 : first;
    owners[rover] = 1;
    count_free--;
    return rover;
}

void page_hold(u32 page)
{
    if (page != zero_page)
        owners[page]++;
}

void page_put(u32 page)
{
    if (page != zero_page && !--owners[page])
        count_free++;
}

u32 pages_free(void)
{
    return count_free;
}

static u32 page_get_cleared(void)
{
    u32 page = page_get();
    memset(page_address(page), 0, PAGE_SIZE);
    return page;
}

/* ---- the kernel's own space ---- */

struct Space kernel_space;
extern char user_text[], user_text_end[];       /* the linker script: text and constants of programs.c */

u32 kernel_page_bits(u32 page)
{
    if (page >= (u32)user_text >> PAGE_SHIFT && page < (u32)user_text_end >> PAGE_SHIFT)
        return PAGE_PRESENT | PAGE_USER;
    return PAGE_PRESENT | PAGE_WRITABLE;
}

/* ---- records: what is mapped at each page of a process ---- */

#define IS_MAPPED 1u
#define IS_WRITABLE 2u                          /* and not shared with anybody */

static u32 table_index(u32 address) { return (address - USER_BASE) / (ENTRIES * PAGE_SIZE); }
static u32 entry_index(u32 address) { return address >> PAGE_SHIFT & (ENTRIES - 1); }

static u32 *record_at(struct Space *space, u32 address)
{
    u32 records = space->records[table_index(address)];
    return records ? (u32 *)page_address(records) + entry_index(address) : 0;
}

static u64 *entry_at(struct Space *space, u32 address)
{
    return (u64 *)page_address(space->tables[table_index(address)]) + entry_index(address);
}

/* The record and the entry of a page are only ever written together. */
static void set_mapping(struct Space *space, u32 address, u32 page, u32 bits)
{
    *record_at(space, address) = page << PAGE_SHIFT | bits;
    pte_set(entry_at(space, address),
            !bits ? 0 : pte_value(page, PAGE_PRESENT | PAGE_USER | (bits & IS_WRITABLE ? PAGE_WRITABLE : 0)));
}

/* ---- address spaces ---- */

#define TABLE_BITS (PAGE_PRESENT | PAGE_WRITABLE | PAGE_USER)

/* Not yet made: tables may still be filled by plain stores. */
static bool prepare(struct Space *space)
{
    if (pages_free() < 2)
        return false;
    memset(space, 0, sizeof *space);
    space->heap_end = HEAP_BASE;
    space->top = page_get_cleared();
    space->directory = page_get_cleared();
    u64 *top = page_address(space->top), *kernel_top = page_address(kernel_space.top);
    top[0] = kernel_top[0];
    top[1] = pte_value(space->directory, PAGE_PRESENT);         /* at this level, no other bit is allowed */
    return true;
}

static void make(struct Space *space)
{
    table_make(space->directory);
    table_make(space->top);
    space_make(space->top);
}

bool space_new(struct Space *space)
{
    if (!zero_page)
        zero_page = page_get_cleared();
    if (!prepare(space))
        return false;
    make(space);
    pte_commit(FLUSH_NOTHING);
    return true;
}

bool space_copy(struct Space *space, struct Space *from)
{
    u32 needed = 2;
    for (u32 t = 0; t < TABLES; t++)
        needed += from->tables[t] ? 2 : 0;
    if (pages_free() < needed || !prepare(space))
        return false;
    space->heap_end = from->heap_end;
    u64 *directory = page_address(space->directory);
    for (u32 t = 0; t < TABLES; t++) {
        if (!from->tables[t])
            continue;
        u64 *table = page_address(space->tables[t] = page_get_cleared());
        u32 *records = page_address(space->records[t] = page_get_cleared());
        u32 *from_records = page_address(from->records[t]);
        for (u32 i = 0; i < ENTRIES; i++) {
            u32 record = from_records[i];
            if (!record)
                continue;
            /* Both may read the page from now on, and neither may write: whoever does gets a copy. */
            if (record & IS_WRITABLE)
                set_mapping(from, USER_BASE + (t * ENTRIES + i) * PAGE_SIZE, record >> PAGE_SHIFT, IS_MAPPED);
            records[i] = record & ~IS_WRITABLE;
            table[i] = pte_value(record >> PAGE_SHIFT, PAGE_PRESENT | PAGE_USER);
            page_hold(record >> PAGE_SHIFT);
        }
        table_make(space->tables[t]);
        directory[t] = pte_value(space->tables[t], TABLE_BITS);
    }
    make(space);
    pte_commit(FLUSH_EVERYTHING);
    return true;
}

void space_free(struct Space *space)
{
    space_drop(space->top);
    for (u32 t = 0; t < TABLES; t++) {
        if (!space->tables[t])
            continue;
        u32 *records = page_address(space->records[t]);
        for (u32 i = 0; i < ENTRIES; i++)
            if (records[i])
                page_put(records[i] >> PAGE_SHIFT);
        table_drop(space->tables[t]);
        page_put(space->tables[t]);
        page_put(space->records[t]);
    }
    table_drop(space->directory);
    table_drop(space->top);
    pte_commit(FLUSH_NOTHING);
    page_put(space->directory);
    page_put(space->top);
}

/* A table for this address, if there is none. The new one is empty when it is hung into the directory. */
static bool provide_table(struct Space *space, u32 address)
{
    u32 t = table_index(address);
    if (space->tables[t])
        return true;
    if (pages_free() < 2)
        return false;
    space->records[t] = page_get_cleared();
    space->tables[t] = page_get_cleared();
    table_make(space->tables[t]);
    pte_set((u64 *)page_address(space->directory) + t, pte_value(space->tables[t], TABLE_BITS));
    return true;
}

bool space_resolve(struct Space *space, u32 address, bool write)
{
    if (address < USER_BASE || address >= space->heap_end || !provide_table(space, address))
        return false;
    u32 record = *record_at(space, address), page = record >> PAGE_SHIFT;
    if (record & (write ? IS_WRITABLE : IS_MAPPED))
        return true;
    if (!write) {
        set_mapping(space, address, zero_page, IS_MAPPED);
    } else {
        /* The last owner of a page that was shared needs no copy. */
        if (!record || page == zero_page || owners[page] > 1) {
            u32 copy = page_get();
            if (!copy) {
                pte_commit(FLUSH_NOTHING);
                return false;
            }
            memcpy(page_address(copy), page_address(record ? page : zero_page), PAGE_SIZE);
            if (record)
                page_put(page);
            page = copy;
        }
        set_mapping(space, address, page, IS_MAPPED | IS_WRITABLE);
    }
    pte_commit(record ? address : FLUSH_NOTHING);
    return true;
}

bool space_allows(struct Space *space, u32 address, u32 length, bool write)
{
    if (length > space->heap_end - USER_BASE || address + length < address)
        return false;
    if (!write && address >= (u32)user_text && address + length <= (u32)user_text_end)
        return true;
    u32 last = address + length;
    for (address &= ~(PAGE_SIZE - 1); address < last; address += PAGE_SIZE)
        if (!space_resolve(space, address, write))
            return false;
    return true;
}

u32 space_heap(struct Space *space, int change)
{
    u32 old = space->heap_end, now = old + change;
    if (change % PAGE_SIZE || now < HEAP_BASE || now > USER_END)
        return -1;
    space->heap_end = now;
    if (now < old)
        space_unmap(space, now, (old - now) / PAGE_SIZE);
    return old;
}

bool space_show_zeros(struct Space *space, u32 address, u32 pages)
{
    if (address % PAGE_SIZE || address < HEAP_BASE || address > space->heap_end
        || pages > (space->heap_end - address) / PAGE_SIZE)
        return false;
    bool ok = true;
    for (u32 i = 0; i < pages && ok; i++, address += PAGE_SIZE) {
        ok = provide_table(space, address);
        if (ok && !*record_at(space, address))
            set_mapping(space, address, zero_page, IS_MAPPED);
    }
    pte_commit(FLUSH_NOTHING);
    return ok;
}

void space_unmap(struct Space *space, u32 address, u32 pages)
{
    for (u32 i = 0; i < pages; i++, address += PAGE_SIZE) {
        u32 *record = record_at(space, address);
        if (!record || !*record)
            continue;
        /* Nobody can take the page before the commit: the kernel is not pre-empted. */
        page_put(*record >> PAGE_SHIFT);
        set_mapping(space, address, 0, 0);
    }
    pte_commit(FLUSH_EVERYTHING);
}
