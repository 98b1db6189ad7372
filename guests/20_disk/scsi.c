/* The five commands that a disk driver cannot do without (SPC-4, SBC-3). */
#include "scsi.h"
#include "../lib/string.h"

#define TEST_UNIT_READY 0x00
#define INQUIRY 0x12
#define READ_CAPACITY_10 0x25
#define READ_10 0x28
#define WRITE_10 0x2A
#define SYNCHRONIZE_CACHE_10 0x35

#define INQUIRY_SIZE 36
#define DIRECT_ACCESS 0x00              /* peripheral qualifier 0 and device type 0 */
#define ATTEMPTS 4                      /* a unit that was just switched on first says so */

static Execute *execute;
static u8 target;

static void put_big_endian(u8 *field, u32 value)
{
    for (u32 i = 0; i < 4; i++)
        field[i] = value >> (24 - 8 * i);
}

static u32 big_endian(const u8 *field)
{
    return (u32)field[0] << 24 | field[1] << 16 | field[2] << 8 | field[3];
}

static bool scsi_transfer(bool write, u32 block, u32 count, void *buffer)
{
    u8 cdb[10] = { write ? WRITE_10 : READ_10 };
    put_big_endian(cdb + 2, block);
    cdb[7] = count >> 8;
    cdb[8] = count;
    return execute(target, cdb, sizeof cdb, write ? TO_TARGET : FROM_TARGET, buffer, count * BLOCK);
}

static bool scsi_flush(void)
{
    /* Block 0 and a count of 0: all of them */
    u8 cdb[10] = { SYNCHRONIZE_CACHE_10 };
    return execute(target, cdb, sizeof cdb, NO_DATA, 0, 0);
}

static bool is_ready(void)
{
    u8 cdb[6] = { TEST_UNIT_READY };
    for (u32 attempt = 0; attempt < ATTEMPTS; attempt++)
        if (execute(target, cdb, sizeof cdb, NO_DATA, 0, 0))
            return true;
    return false;
}

bool scsi_find(struct Disk *disk, Execute *by)
{
    static u8 data[INQUIRY_SIZE];
    u8 inquiry[6] = { INQUIRY, 0, 0, 0, INQUIRY_SIZE };
    u8 capacity[10] = { READ_CAPACITY_10 };

    execute = by;
    for (target = 0; target < 16; target++) {
        if (!execute(target, inquiry, sizeof inquiry, FROM_TARGET, data, sizeof data) || data[0] != DIRECT_ACCESS)
            continue;
        memset(disk->model, 0, sizeof disk->model);
        memcpy(disk->model, data + 8, 24);      /* vendor and product */
        trim(disk->model);
        if (!is_ready() || !execute(target, capacity, sizeof capacity, FROM_TARGET, data, 8)
            || big_endian(data + 4) != BLOCK)
            continue;
        u32 last = big_endian(data);
        disk->blocks = last == 0xFFFFFFFF ? last : last + 1;
        disk->transfer = scsi_transfer;
        disk->flush = scsi_flush;
        return true;
    }
    return false;
}
