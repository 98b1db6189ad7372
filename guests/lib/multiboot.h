/* The information structure of Multiboot 0.6.96, 3.3, as far as we read it. */
#pragma once
#include "cpu.h"

#define MULTIBOOT_LOADED 0x2BADB002
#define MULTIBOOT_HAS_MEMORY (1u << 0)
#define MULTIBOOT_HAS_COMMAND_LINE (1u << 2)

struct Multiboot {
    u32 flags;
    u32 lower_kib, upper_kib;           /* below 640 KiB; from 1 MiB to the first hole */
    u32 boot_device;
    const char *command_line;
    u32 module_count, modules;
    u32 symbols[4];
    u32 map_length, map;
};

/* The command line without the image's name, which loaders put first; "" if there is none. */
const char *command_line(const struct Multiboot *information);
