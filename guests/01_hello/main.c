/* Hello from ring 0: the smallest whole guest. A loader put us at 1 MiB, lib/ built a GDT and an IDT; what is left
 * is to say something, and every byte of it is an OUT instruction that a hypervisor must answer. */
#include "../lib/multiboot.h"
#include "../lib/report.h"

void main(const struct Multiboot *information)
{
    print("Hello from ring 0\n");

    /* The loader's information structure: who started us, with what, and how much memory there is. */
    print("command line: \"%s\"\n", command_line(information));
    print("memory: %u MiB\n", (information->upper_kib + 1024 + 1023) / 1024);
    report("the loader says how much memory there is",
           information->flags & MULTIBOOT_HAS_MEMORY && information->upper_kib > 0);
}
