/* An ATA disk, device 0 of the first channel, by programmed I/O (ATA/ATAPI-6, chapters 7 to 9).
 *
 * The device interrupts once for every block of sectors, and the CPU moves each word itself. */
#include "../abi/machine_map.h"
#include "../lib/string.h"
#include "disk.h"
#include "pci.h"

/* Registers of the command block */
#define DATA (IDE_PRIMARY + 0)
#define COUNT (IDE_PRIMARY + 2)
#define LBA_LOW (IDE_PRIMARY + 3)
#define LBA_MID (IDE_PRIMARY + 4)
#define LBA_HIGH (IDE_PRIMARY + 5)
#define DEVICE (IDE_PRIMARY + 6)
#define STATUS (IDE_PRIMARY + 7)
#define COMMAND (IDE_PRIMARY + 7)

#define DEVICE_LBA 0xE0
#define STATUS_BSY 0x80
#define STATUS_DRQ 0x08
#define STATUS_ERR 0x01

#define IDENTIFY_DEVICE 0xEC
#define SET_MULTIPLE_MODE 0xC6
#define READ_MULTIPLE 0xC4
#define WRITE_MULTIPLE 0xC5
#define FLUSH_CACHE 0xE7

#define LBA28_BLOCKS 0x0FFFFFFFu
#define IDE_CLASS 0x0101

static volatile u8 status;
static u32 multiple;                    /* sectors between two interrupts */

static bool ide_acknowledge(void)
{
    status = inb(STATUS);               /* reading it takes the interrupt back */
    return true;
}

static void read_words(void *to, u32 count)
{
    asm volatile("rep insw" : "+D"(to), "+c"(count) : "d"(DATA) : "memory");
}

static void write_words(const void *from, u32 count)
{
    asm volatile("rep outsw" : "+S"(from), "+c"(count) : "d"(DATA) : "memory");
}

/* Starts a command for up to 256 sectors, which are written as 0. */
static void start(u8 command, u32 block, u32 count)
{
    outb(DEVICE, DEVICE_LBA | (block >> 24 & 0x0F));
    outb(COUNT, count);
    outb(LBA_LOW, block);
    outb(LBA_MID, block >> 8);
    outb(LBA_HIGH, block >> 16);
    outb(COMMAND, command);
}

static bool finished(void)
{
    wait_for_adapter();
    return !(status & STATUS_ERR);
}

static bool ide_transfer(bool write, u32 block, u32 count, void *buffer)
{
    u8 *p = buffer;
    start(write ? WRITE_MULTIPLE : READ_MULTIPLE, block, count);
    if (write) {
        /* The first block is asked for without an interrupt, and at once. The alternate status takes no interrupt back:
         * a command that is refused has its own. */
        do
            status = inb(IDE_PRIMARY_CONTROL);
        while (status & STATUS_BSY);
        if (!(status & STATUS_DRQ))
            return finished() && false;
    }
    while (count) {
        u32 sectors = count < multiple ? count : multiple;
        if (!write && !finished())
            return false;
        if (!(status & STATUS_DRQ))
            return false;
        if (write)
            write_words(p, sectors * BLOCK / 2);
        else
            read_words(p, sectors * BLOCK / 2);
        p += sectors * BLOCK;
        count -= sectors;
        if (write && !finished())
            return false;
    }
    return true;
}

static bool ide_flush(void)
{
    start(FLUSH_CACHE, 0, 0);
    return finished();
}

bool ide_find(struct Disk *disk)
{
    static u16 identity[BLOCK / 2];
    if (!pci_has_class(IDE_CLASS))
        return false;
    outb(IDE_PRIMARY_CONTROL, 0);       /* interrupts, please */
    outb(DEVICE, DEVICE_LBA);
    u8 present = inb(STATUS);
    if (present == 0 || present == 0xFF)
        return false;
    listen(IRQ_IDE_PRIMARY, ide_acknowledge);
    start(IDENTIFY_DEVICE, 0, 0);
    if (!finished() || !(status & STATUS_DRQ))
        return false;                   /* a CD-ROM refuses */
    read_words(identity, BLOCK / 2);

    /* Words 27 to 46: the model, two letters a word, the first in the high byte, blanks behind it */
    for (u32 i = 0; i < 20; i++) {
        disk->model[2 * i] = identity[27 + i] >> 8;
        disk->model[2 * i + 1] = identity[27 + i];
    }
    trim(disk->model);
    disk->blocks = identity[60] | (u32)identity[61] << 16;
    multiple = identity[47] & 0xFF;
    start(SET_MULTIPLE_MODE, 0, multiple);
    if (!multiple || !finished())
        return false;
    disk->transfer = ide_transfer;
    disk->flush = ide_flush;
    return true;
}
