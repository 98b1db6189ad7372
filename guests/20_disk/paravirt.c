/* As a domain of Xen: SCSI requests on a ring that we share with the back end, data on pages that we grant it. Numbers and
 * layouts are those of Xen's public headers (grant_table.h, event_channel.h, io/ring.h, io/vscsiif.h, io/xs_wire.h). */
#include "../abi/machine_map.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "../lib/string.h"
#include "scsi.h"

enum { SET_CALLBACKS = 4, UPDATE_VA_MAPPING = 14, GRANT_TABLE_OP = 20, SCHED_OP = 29, EVENT_CHANNEL_OP = 32,
       PHYSDEV_OP = 33 };
enum { EVENT_SEND = 4, EVENT_ALLOC_UNBOUND = 6, EVENT_UNMASK = 9 };
enum { SCHED_BLOCK = 1, GRANT_SETUP_TABLE = 2, SET_IOPL = 6 };
enum { STORE_READ = 2, STORE_WRITE = 11 };
#define RING1_CODE 0xE019
#define MYSELF 0x7FF0                   /* as the number of a domain; the back end is domain 0 */
#define INVLPG 2
#define CONNECTED '4'
#define GRANT_ACCESS 1
#define GRANT_READ_ONLY 4
#define FIRST_GRANT 8                   /* the ring; those of data follow */
#define SEGMENTS 26
#define RING_SIZE 16
#define ACTION_CDB 1
#define BACK "/local/domain/0/backend/vscsi/1/0/state"

struct StartInfo {
    char magic[32];
    u32 page_count, shared_info, flags, store_mfn, store_port, console_mfn, console_port;
    u32 top_table, table_pages, mfn_list, module, module_length;
    char command_line[1024];
};
struct SharedInfo { u8 vcpu[32][64]; u32 pending[32], mask[32]; };
struct Grant { u16 flags, domain; u32 frame; };
#define CONSOLE_OUT 2048
struct Console { char in[1024], out[CONSOLE_OUT]; u32 in_taken, in_put, out_taken, out_put; };
#define STORE_RING 1024
struct Store { char requests[STORE_RING], answers[STORE_RING]; u32 request_taken, request_put, answer_taken, answer_put; };
struct StoreHeader { u32 type, number, transaction, length; };

struct Segment { u32 grant; u16 offset, length; };
struct Request {
    u16 id;
    u8 action, cdb_length, cdb[16];
    u16 timeout, channel, target, lun, padding;
    u8 direction, segment_count;
    struct Segment segments[SEGMENTS];
    u32 reserved[3];
};
struct Response {
    u16 id;
    u8 padding, sense_length, sense[96];
    int result;
    u32 residual, reserved[36];
};
struct Ring {
    u32 request_put, request_event, response_put, response_event, unused[12];
    union { struct Request request; struct Response response; } slots[RING_SIZE];
};

extern volatile struct SharedInfo shared_info;
extern volatile struct Grant grant_table[];
extern char on_event[];
u32 hypercall(u32 number, u32 a, u32 b, u32 c, u32 d);
static struct StartInfo *start_info;
static const u32 *mfn_list;
static volatile struct Store *store;
static volatile struct Console *console;
static volatile u8 ring_page[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static volatile struct Ring *const ring = (volatile struct Ring *)ring_page;
static u32 port;

static void insist(u32 result)
{
    if ((int)result < 0)
        report("the hypervisor does as it is asked", false);
}

static void remap(volatile void *address, u64 entry)
{
    insist(hypercall(UPDATE_VA_MAPPING, (u32)address, entry, entry >> 32, INVLPG));
}

static void *page_of(u32 mfn)
{
    u32 page = 0;
    while (mfn_list[page] != mfn)
        page++;
    return (void *)(page * PAGE_SIZE);
}

static u32 mfn_of(const volatile void *address) { return mfn_list[(u32)address / PAGE_SIZE]; }

/* Sleeps until an event. What it was about is for the caller to see: all marks are taken away before it looks. */
static void sleep(void)
{
    hypercall(SCHED_OP, SCHED_BLOCK, 0, 0, 0);
    for (u32 i = 0; i < 32; i++)
        shared_info.pending[i] = 0;
    *(volatile u32 *)&shared_info.vcpu[0][4] = 0;
}

/* ---- The console ---- */

void put(char c)
{
    console->out[console->out_put++ % CONSOLE_OUT] = c;
    if (c == '\n')
        hypercall(EVENT_CHANNEL_OP, EVENT_SEND, (u32)&start_info->console_port, 0, 0);
}

/* ---- The store ---- */

static void store_put(const void *data, u32 length)
{
    for (u32 i = 0; i < length; i++)
        store->requests[store->request_put++ % STORE_RING] = ((const char *)data)[i];
}

static char store_take(void)
{
    while (store->answer_taken == store->answer_put)
        sleep();
    return store->answers[store->answer_taken++ % STORE_RING];
}

/* One message and its answer, whose first byte comes back. */
static char store_ask(u32 type, const char *text, u32 length)
{
    struct StoreHeader header = { type, 0, 0, length };
    char first = 0;
    store_put(&header, sizeof header);
    store_put(text, length);
    hypercall(EVENT_CHANNEL_OP, EVENT_SEND, (u32)&start_info->store_port, 0, 0);
    for (u32 i = 0; i < sizeof header; i++)
        ((char *)&header)[i] = store_take();
    for (u32 i = 0; i < header.length; i++) {
        char letter = store_take();
        first = i ? first : letter;
    }
    return first;
}

static void store_write(const char *name, u32 value)
{
    char text[80];
    u32 length = 0, digit = 1000000000;
    while ((text[length] = name[length]))
        length++;
    length++;
    while (digit > 1 && value < digit)
        digit /= 10;
    for (; digit; digit /= 10)
        text[length++] = '0' + value / digit % 10;
    store_ask(STORE_WRITE, text, length);
}

/* ---- SCSI ---- */

static void grant(u32 number, const volatile void *page, u16 flags)
{
    grant_table[number].domain = 0;
    grant_table[number].frame = mfn_of(page);
    grant_table[number].flags = GRANT_ACCESS | flags;
}

static bool execute(u8 target, const u8 *cdb, u32 cdb_length, enum Direction direction, void *data, u32 length)
{
    u32 number = ring->request_put, count = 0;
    volatile struct Request *request = &ring->slots[number % RING_SIZE].request;
    for (u32 done = 0; done < length;) {
        u32 at = (u32)data + done, offset = at % PAGE_SIZE, piece = PAGE_SIZE - offset;
        if (count == SEGMENTS)
            return false;
        if (piece > length - done)
            piece = length - done;
        grant(FIRST_GRANT + 1 + count, (void *)at, direction == TO_TARGET ? GRANT_READ_ONLY : 0);
        request->segments[count] = (struct Segment){ FIRST_GRANT + 1 + count, offset, piece };
        count++;
        done += piece;
    }
    request->id = number;
    request->action = ACTION_CDB;
    request->cdb_length = cdb_length;
    for (u32 i = 0; i < cdb_length; i++)
        request->cdb[i] = cdb[i];
    request->timeout = request->channel = request->lun = 0;
    request->target = target;
    request->direction = direction == TO_TARGET ? 1 : direction == FROM_TARGET ? 2 : 3;
    request->segment_count = count;
    ring->response_event = number + 1;
    ring->request_put = number + 1;
    hypercall(EVENT_CHANNEL_OP, EVENT_SEND, (u32)&port, 0, 0);
    while (ring->response_put != number + 1)
        sleep();
    for (u32 i = 0; i < count; i++)
        grant_table[FIRST_GRANT + 1 + i].flags = 0;
    return ring->slots[number % RING_SIZE].response.result == 0;
}

const char *find_disk(const char *options, struct Disk *disk)
{
    struct { u16 domain, remote; u32 port; } channel = { MYSELF, 0, 0 };
    (void)options;
    ring->request_event = ring->response_event = 1;
    grant(FIRST_GRANT, ring_page, 0);
    insist(hypercall(EVENT_CHANNEL_OP, EVENT_ALLOC_UNBOUND, (u32)&channel, 0, 0));
    port = channel.port;
    hypercall(EVENT_CHANNEL_OP, EVENT_UNMASK, (u32)&port, 0, 0);
    store_write("device/vscsi/0/ring-ref", FIRST_GRANT);
    store_write("device/vscsi/0/event-channel", port);
    store_write("device/vscsi/0/state", 3);     /* initialised */
    if (store_ask(STORE_READ, BACK, sizeof BACK) != CONNECTED)
        return 0;
    store_write("device/vscsi/0/state", 4);     /* connected */
    return scsi_find(disk, execute) ? "pv" : 0;
}

void start_domain(struct StartInfo *information)
{
    static u32 frames[1];
    struct { u16 domain; u32 count; short status; u32 *frames; } table = { MYSELF, 1, 0, frames };
    u32 privilege = 1;
    start_info = information;
    mfn_list = (u32 *)information->mfn_list;
    store = page_of(information->store_mfn);
    console = page_of(information->console_mfn);
    insist(hypercall(PHYSDEV_OP, SET_IOPL, (u32)&privilege, 0, 0));     /* for the port of the verdict */
    remap(&shared_info, information->shared_info | PAGE_PRESENT | PAGE_WRITABLE);
    insist(hypercall(SET_CALLBACKS, RING1_CODE, (u32)on_event, RING1_CODE, (u32)on_event));
    insist(hypercall(GRANT_TABLE_OP, GRANT_SETUP_TABLE, (u32)&table, 1, 0));
    remap(grant_table, (u64)frames[0] * PAGE_SIZE | PAGE_PRESENT | PAGE_WRITABLE);
    hypercall(EVENT_CHANNEL_OP, EVENT_UNMASK, (u32)&information->store_port, 0, 0);
    play(information->command_line);
    finish();
}
