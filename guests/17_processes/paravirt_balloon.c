/* The balloon: pages that we lend to the hypervisor, as many as the host wants, which it says through the store. */
#include "kernel.h"
#include "paravirt.h"

/* ---- the store: the host's names and values, by messages on a page; of ours there is one at a time under way ---- */

static volatile struct Store *store;
static struct { struct StoreHeader header; char text[32]; } message;    /* as much of it as has come */
static u32 message_length, awaited;     /* the number of what we asked, 0: it has been answered */

static void store_notify(void) { ask(EVENT_CHANNEL_OP, EVENT_SEND, (u32)&start_info->store_port, 0, 0); }

static void store_put(const void *data, u32 length)
{
    u32 put = store->request_put;
    for (u32 i = 0; i < length; i++)
        store->requests[put++ % STORE_RING] = ((const char *)data)[i];
    store->request_put = put;
}

static void store_ask(u32 type, const char *text, u32 length)
{
    static u32 number;
    struct StoreHeader header = { type, awaited = ++number, 0, length };
    store_put(&header, sizeof header);
    store_put(text, length);
    store_notify();
}

/* Whether `message` is a whole one now; what its text has no room for is dropped. */
static bool store_take(void)
{
    while (store->answer_taken != store->answer_put) {
        char letter = store->answers[store->answer_taken % STORE_RING];
        store->answer_taken++;
        if (message_length < sizeof message)
            ((char *)&message)[message_length] = letter;
        message_length++;
        if (message_length >= sizeof message.header
            && message_length - sizeof message.header == message.header.length) {
            message_length = 0;
            return true;
        }
    }
    return false;
}

/* ---- the balloon: pages lent to the hypervisor, as many as the host wants and we can spare ---- */

#define TARGET "memory/target"          /* what we should have and what we have, in KiB, as text */
#define CURRENT "memory/current"
#define BATCH REQUESTS
#define BATCHES 8                       /* at once: the clock must not wait too long */
#define RESERVE 96u                     /* pages that stay free, to fork and to grow: the self-checks need 64 */
static u32 lent, to_lend;               /* pages; what is lent is NOWHERE in mfn_list */
static u32 extents[BATCH];
static bool fired, untold, resting;     /* the target was written; we have news; we are as far as we get for now */

u32 machine_pages_lent(void) { return lent; }
static u32 least(u32 a, u32 b) { return a < b ? a : b; }

static u32 reserve(u32 command, u32 count)
{
    struct Reservation reservation = { (u32)extents, count, 0, 0, MYSELF };
    return ask(MEMORY_OP, command, (u32)&reservation, 0, 0);
}

/* A page may go when nobody maps it any more, us included. */
static u32 lend(u32 count)
{
    for (u32 i = 0; i < count; i++) {
        u32 page = page_get();
        pte_set(own_entry(page), 0);
        extents[i] = mfn_list[page];
        mfn_list[page] = NOWHERE;
    }
    pte_commit(FLUSH_EVERYTHING);
    insist(reserve(MEMORY_DECREASE, count) == count);
    lent += count;
    return count;
}

/* What comes back for a page is hardly ever what went; and less may come than we ask for. */
static u32 take_back(u32 count)
{
    static u32 pages[BATCH], page;
    for (u32 i = 0; i < count; i++) {
        do
            page = page + 1 < start_info->page_count ? page + 1 : 0;
        while (mfn_list[page] != NOWHERE);
        extents[i] = pages[i] = page;
    }
    count = reserve(MEMORY_POPULATE, count);
    for (u32 i = 0; i < count; i++) {
        mfn_list[pages[i]] = extents[i];
        set_own(pages[i], PAGE_PRESENT | PAGE_WRITABLE);
    }
    pte_commit(FLUSH_NOTHING);
    for (u32 i = 0; i < count; i++)
        page_put(pages[i]);
    lent -= count;
    return count;
}

/* Towards the target; where there is nothing to spare, or to get, a later tick tries again. */
static void balloon(void)
{
    u32 moved = 1;
    for (u32 i = 0; i < BATCHES && lent != to_lend && moved; i++) {
        u32 spare = pages_free() > RESERVE ? pages_free() - RESERVE : 0;
        if (lent > to_lend)
            moved = take_back(least(BATCH, lent - to_lend));
        else
            moved = spare ? lend(least(BATCH, least(spare, to_lend - lent))) : 0;
        untold |= moved != 0;
    }
    resting = lent == to_lend || !moved;
}

static void set_target(const char *digits, u32 length)
{
    u32 kib = 0, most = start_info->page_count * (PAGE_SIZE / 1024);
    for (u32 i = 0; i < length; i++) {
        if (digits[i] < '0' || digits[i] > '9')
            return;
        kib = least(kib * 10 + (digits[i] - '0'), most);
    }
    if (!length)
        return;
    to_lend = start_info->page_count - kib / (PAGE_SIZE / 1024);
    untold = true;
    balloon();
}

static void tell_current(void)
{
    char text[32] = CURRENT, *digits = text + sizeof CURRENT;
    u32 kib = (start_info->page_count - lent) * (PAGE_SIZE / 1024), length = 1;
    for (u32 rest = kib; rest >= 10; rest /= 10)
        length++;
    for (u32 i = length; i--; kib /= 10)
        digits[i] = '0' + kib % 10;
    store_ask(STORE_WRITE, text, sizeof CURRENT + length);
}

/* What is next to be asked, if anything. */
static bool store_go_on(void)
{
    if (awaited || !(fired || (untold && resting)))
        return false;
    if (fired) {
        fired = false;
        store_ask(STORE_READ, TARGET, sizeof TARGET);
    } else {
        untold = false;
        tell_current();
    }
    return true;
}

void balloon_event(void)
{
    while (store_take()) {
        if (message.header.type == STORE_WATCH_EVENT) {
            fired = true;
        } else if (message.header.number == awaited) {
            awaited = 0;
            if (message.header.type == STORE_READ)          /* and not an error: there is a target */
                set_target(message.text, least(message.header.length, sizeof message.text));
        }
    }
    if (!store_go_on())
        store_notify();                 /* there is room for more */
}

void balloon_start(void)
{
    store = page_address(page_of(start_info->store_mfn));
    ask(EVENT_CHANNEL_OP, EVENT_UNMASK, (u32)&start_info->store_port, 0, 0);
    store_ask(STORE_WATCH, TARGET "\0balloon", sizeof TARGET "\0balloon");
}

void balloon_tick(void)
{
    balloon();
    store_go_on();
}
