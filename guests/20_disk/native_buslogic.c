/* A BusLogic MultiMaster adapter: commands lie in memory, mailboxes say where, and the adapter fetches them itself.
 * Its registers and structures are those of Linux's drivers/scsi/BusLogic.h. */
#include "../lib/string.h"
#include "pci.h"
#include "scsi.h"

#define IDENTITY 0x1040104B

/* Registers, offsets from the first port */
#define CONTROL 0
#define STATUS 0
#define COMMAND 1
#define INTERRUPT 2

#define CONTROL_INTERRUPT_RESET 0x20
#define STATUS_READY 0x10
#define STATUS_COMMAND_BUSY 0x08
#define INTERRUPT_VALID 0x80
#define INTERRUPT_COMMAND_COMPLETE 0x04
#define INTERRUPT_INCOMING_LOADED 0x01

#define START_MAILBOX 0x02
#define INITIALIZE_EXTENDED_MAILBOX 0x81

#define MAILBOXES 4
#define FREE 0
#define ACTION_START 1
#define COMPLETED 1

struct Ccb {                            /* 32-bit command control block */
    u8 opcode, control, cdb_length, sense_length;
    u32 data_length, data;
    u16 reserved;
    u8 host_status, target_status, target, unit, cdb[12], reserved_too[6];
    u32 sense;
} __attribute__((packed));

struct Outgoing {
    u32 ccb;
    u8 reserved[3], action;
};

struct Incoming {
    u32 ccb;
    u8 host_status, target_status, reserved, completion;
};

static volatile struct { struct Outgoing out[MAILBOXES]; struct Incoming in[MAILBOXES]; } mailboxes;
static volatile struct Ccb ccb;
static u8 sense[32];
static u32 next_out, next_in;
static u16 ports;

static bool buslogic_acknowledge(void)
{
    u8 why = inb(ports + INTERRUPT);
    if (!(why & INTERRUPT_VALID))
        return false;                   /* somebody else's: lines are shared */
    outb(ports + CONTROL, CONTROL_INTERRUPT_RESET);
    return why & (INTERRUPT_COMMAND_COMPLETE | INTERRUPT_INCOMING_LOADED);
}

static void send(u8 byte)
{
    while (inb(ports + STATUS) & STATUS_COMMAND_BUSY)
        ;
    outb(ports + COMMAND, byte);
}

static bool buslogic_execute(u8 target, const u8 *cdb, u32 cdb_length, enum Direction direction, void *data, u32 length)
{
    static const u8 control[] = { [NO_DATA] = 3 << 3, [FROM_TARGET] = 1 << 3, [TO_TARGET] = 2 << 3 };
    memset((void *)&ccb, 0, sizeof ccb);
    ccb.control = control[direction];
    ccb.cdb_length = cdb_length;
    memcpy((void *)ccb.cdb, cdb, cdb_length);
    ccb.data = (u32)data;
    ccb.data_length = length;
    ccb.target = target;
    ccb.sense = (u32)sense;
    ccb.sense_length = sizeof sense;

    mailboxes.out[next_out].ccb = (u32)&ccb;
    mailboxes.out[next_out].action = ACTION_START;
    next_out = (next_out + 1) % MAILBOXES;
    outb(ports + COMMAND, START_MAILBOX);
    wait_for_adapter();

    volatile struct Incoming *in = &mailboxes.in[next_in];
    bool good = in->completion == COMPLETED;
    in->completion = FREE;
    next_in = (next_in + 1) % MAILBOXES;
    return good;
}

bool buslogic_find(struct Disk *disk)
{
    u32 place = pci_find(IDENTITY);
    if (!place)
        return false;
    ports = pci_ports(place);
    /* Nobody has used the adapter since power-on, so there is nothing to reset. */
    if (!(inb(ports + STATUS) & STATUS_READY))
        return false;
    listen(pci_line(place), buslogic_acknowledge);
    send(INITIALIZE_EXTENDED_MAILBOX);
    send(MAILBOXES);
    for (u32 shift = 0; shift < 32; shift += 8)
        send((u32)&mailboxes >> shift);
    wait_for_adapter();
    return scsi_find(disk, buslogic_execute);
}
