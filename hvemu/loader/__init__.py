"""Getting an image into memory: firmware tables, multiboot, bzImage, boot sector with BIOS calls, flat binary."""
