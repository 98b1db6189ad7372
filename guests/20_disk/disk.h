/* A disk, whatever its adapter, and the waiting that all drivers have in common. */
#pragma once
#include "../lib/cpu.h"

#define BLOCK 512

struct Disk {
    char model[41];
    u32 blocks;                         /* of BLOCK bytes; more than 32 bits can count are not used */
    bool (*transfer)(bool write, u32 block, u32 count, void *buffer);
    bool (*flush)(void);                /* until what was written is on the medium */
};

void play(const char *options);         /* all of the lesson */
bool has_word(const char *text, const char *word);

/* The machine: looks for a disk, and says by what adapter; 0 if there is none. */
const char *find_disk(const char *options, struct Disk *disk);

/* Each driver: is there an adapter of this kind with a disk? */
bool ide_find(struct Disk *disk);
bool buslogic_find(struct Disk *disk);
bool virtio_find(struct Disk *disk);

void trim(char *model);                 /* standards pad names with blanks */

/* Interrupts. `acknowledge` is called for every one; it quiets the adapter and says whether the request is over. */
void listen(u32 line, bool (*acknowledge)(void));
void wait_for_adapter(void);            /* sleeps until `acknowledge` has said so once more */
