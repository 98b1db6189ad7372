/* SCSI commands, for adapters that carry them. */
#pragma once
#include "disk.h"

enum Direction { NO_DATA, FROM_TARGET, TO_TARGET };

/* Sends a command to unit 0 of a target and sleeps until it is over; true when its status is GOOD. */
typedef bool Execute(u8 target, const u8 *cdb, u32 cdb_length, enum Direction direction, void *data, u32 length);

/* Looks for a disk at targets 0 to 15. */
bool scsi_find(struct Disk *disk, Execute *execute);
