/* A disk, whatever its adapter: finds it, writes, flushes, reads back, and then reads and writes as much as the command
 * line asks for.
 *
 *     adapter=ide|buslogic|virtio-scsi    on a PC; otherwise the first of them, from right to left, that has a disk
 *     write=KIB read=KIB                  how much, after the checks
 *     request=KIB                         of how much at once
 *     pattern=sequential|random           where
 */
#include "../lib/report.h"
#include "../lib/string.h"
#include "disk.h"

#define KIB 1024
#ifdef PARAVIRT
#define LARGEST_REQUEST (64 * KIB)      /* of what 26 segments of a page can hold, a power of two */
#else
#define LARGEST_REQUEST (128 * KIB)     /* what the count register of an IDE channel can say */
#endif
#define CHECKED_BLOCKS 24               /* more than an IDE channel moves between two interrupts */
#define PLACES 3

static struct Disk disk;
static u32 buffer[LARGEST_REQUEST / 4] __attribute__((aligned(4096)));

void trim(char *model)
{
    for (u32 i = sizeof disk.model - 1; i && (!model[i - 1] || model[i - 1] == ' '); i--)
        model[i - 1] = 0;
}

/* ---- The command line ---- */

bool has_word(const char *text, const char *word)
{
    for (const char *p = text; *p; p++) {
        const char *q = p, *w = word;
        while (*w && *q == *w)
            q++, w++;
        if (!*w && (!*q || *q == ' ') && (p == text || p[-1] == ' '))
            return true;
    }
    return false;
}

/* ---- Checks ---- */

/* A word that belongs to one place of one disk only, and differs from its neighbours in every byte. */
static u32 pattern(u32 block, u32 word)
{
    return block * 0x9E3779B9 + word * 0x01030507;
}

static void check(void)
{
    u32 places[PLACES] = { 0, disk.blocks / 2, disk.blocks - CHECKED_BLOCKS };
    bool written = true, read = true, equal = true;
    for (u32 i = 0; i < PLACES; i++) {
        for (u32 w = 0; w < CHECKED_BLOCKS * BLOCK / 4; w++)
            buffer[w] = pattern(places[i] + w / (BLOCK / 4), w % (BLOCK / 4));
        written &= disk.transfer(true, places[i], CHECKED_BLOCKS, buffer);
    }
    report("blocks are written", written);
    report("the cache is flushed", disk.flush());
    for (u32 i = 0; i < PLACES; i++) {
        memset(buffer, 0, CHECKED_BLOCKS * BLOCK);
        read &= disk.transfer(false, places[i], CHECKED_BLOCKS, buffer);
        for (u32 w = 0; w < CHECKED_BLOCKS * BLOCK / 4; w++)
            equal &= buffer[w] == pattern(places[i] + w / (BLOCK / 4), w % (BLOCK / 4));
    }
    report("blocks are read", read);
    report("what was written is read", equal);
    if (disk.blocks < 0x0FFFFFFF)
        report("the block behind the last one is refused", !disk.transfer(false, disk.blocks, 1, buffer));
    report("after an error the disk goes on", disk.transfer(false, disk.blocks - 1, 1, buffer));
}

/* ---- What is measured ---- */

static void transfer(const char *name, bool write, u32 kib, u32 request, bool random)
{
    u32 blocks = request / BLOCK, slots = disk.blocks / blocks, requests = kib / (request / KIB), done = 0;
    u32 seed = 1;
    for (; done < requests; done++) {
        seed = seed * 1664525 + 1013904223;
        u32 block = (random ? seed >> 8 : done) % slots * blocks;
        if (write)
            buffer[0] = block;
        if (!disk.transfer(write, block, blocks, buffer))
            break;
    }
    print("%s %u KiB in requests of %u KiB, %s\n", name, requests * (request / KIB), request / KIB,
          random ? "random" : "sequential");
    report(name, done == requests && (!write || disk.flush()));
}

void play(const char *options)
{
    u32 request = option(options, "request", 4) * KIB;
    bool random = has_word(options, "pattern=random");
    const char *adapter = find_disk(options, &disk);
    if (!adapter) {
        report_skip("a disk", "none of the adapters asked for has one; give --disk FILE,adapter=NAME");
        return;
    }
    print("%s: %s, %u blocks of %u bytes\n", adapter, disk.model, disk.blocks, BLOCK);
    report("a disk is found", true);
    if (!request || request > LARGEST_REQUEST || disk.blocks < 2 * LARGEST_REQUEST / BLOCK) {
        report("request= is from 1 to the most that the adapter takes, and the disk has room for two", false);
        return;
    }
    check();
    transfer("write", true, option(options, "write", 16), request, random);
    transfer("read", false, option(options, "read", 16), request, random);
}
