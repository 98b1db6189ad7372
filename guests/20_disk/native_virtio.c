/* A virtio SCSI host by the legacy interface (VIRTIO 1.2, 4.1.4.10, 2.7, 5.6): one register write tells the device that
 * there is something in the ring; all else is memory. */
#include "../lib/string.h"
#include "pci.h"
#include "scsi.h"

#define IDENTITY 0x10041AF4

/* Registers, offsets from the first port; the device's own configuration follows */
#define DRIVER_FEATURES 0x04
#define QUEUE_ADDRESS 0x08
#define QUEUE_SIZE 0x0C
#define QUEUE_SELECT 0x0E
#define QUEUE_NOTIFY 0x10
#define DEVICE_STATUS 0x12
#define ISR_STATUS 0x13

#define ACKNOWLEDGE 1
#define DRIVER 2
#define DRIVER_OK 4

#define REQUEST_QUEUE 2                 /* the first of them; 0 is for control, 1 for events */
#define LARGEST_QUEUE 1024
#define PAGE 4096

#define DESCRIPTOR_NEXT 1
#define DESCRIPTOR_WRITE 2              /* the device writes it */

struct Descriptor {
    u64 address;
    u32 length;
    u16 flags, next;
};

struct Request {
    u8 unit[8];
    u64 id;
    u8 attribute, priority, reference, cdb[32];
} __attribute__((packed));

struct Response {
    u32 sense_length, residual;
    u16 qualifier;
    u8 status, response, sense[96];
} __attribute__((packed));

/* Descriptors and the available ring, then on a page of its own the used ring */
static u8 queue[16 * LARGEST_QUEUE + PAGE + 2 * PAGE + PAGE + 8 * LARGEST_QUEUE] __attribute__((aligned(PAGE)));
static struct Descriptor *descriptors;
static volatile u16 *available, *used;  /* flags, index, entries */
static u32 size;
static struct Request request;
static volatile struct Response response;
static u16 ports;

static bool virtio_acknowledge(void)
{
    return inb(ports + ISR_STATUS) & 1; /* reading it takes the interrupt back */
}

static void describe(u32 *count, const volatile void *data, u32 length, u16 flags)
{
    if (*count) {
        descriptors[*count - 1].flags |= DESCRIPTOR_NEXT;
        descriptors[*count - 1].next = *count;
    }
    descriptors[(*count)++] = (struct Descriptor){ (u32)data, length, flags, 0 };
}

static bool virtio_execute(u8 target, const u8 *cdb, u32 cdb_length, enum Direction direction, void *data, u32 length)
{
    u32 count = 0;
    memset(&request, 0, sizeof request);
    request.unit[0] = 1;
    request.unit[1] = target;
    memcpy(request.cdb, cdb, cdb_length);
    response.response = 0xFF;

    describe(&count, &request, sizeof request, 0);
    if (direction == TO_TARGET)
        describe(&count, data, length, 0);
    describe(&count, &response, sizeof response, DESCRIPTOR_WRITE);
    if (direction == FROM_TARGET)
        describe(&count, data, length, DESCRIPTOR_WRITE);

    available[2 + available[1] % size] = 0;     /* the chain begins with descriptor 0 */
    available[1]++;
    outw(ports + QUEUE_NOTIFY, REQUEST_QUEUE);
    while (used[1] != available[1])
        wait_for_adapter();
    return response.response == 0 && response.status == 0;
}

bool virtio_find(struct Disk *disk)
{
    u32 place = pci_find(IDENTITY);
    if (!place)
        return false;
    ports = pci_ports(place);
    outb(ports + DEVICE_STATUS, 0);             /* reset */
    outb(ports + DEVICE_STATUS, ACKNOWLEDGE);
    outb(ports + DEVICE_STATUS, ACKNOWLEDGE | DRIVER);
    outl(ports + DRIVER_FEATURES, 0);           /* none of them */
    outw(ports + QUEUE_SELECT, REQUEST_QUEUE);
    size = inw(ports + QUEUE_SIZE);             /* the device decides */
    if (!size || size > LARGEST_QUEUE)
        return false;
    descriptors = (struct Descriptor *)queue;
    available = (volatile u16 *)(queue + 16 * size);
    used = (volatile u16 *)(queue + ((16 * size + 6 + 2 * size + PAGE - 1) & ~(PAGE - 1u)));
    outl(ports + QUEUE_ADDRESS, (u32)queue / PAGE);
    listen(pci_line(place), virtio_acknowledge);
    outb(ports + DEVICE_STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    return scsi_find(disk, virtio_execute);
}
