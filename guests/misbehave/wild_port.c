/* Touches a port and an address where nothing is. On a PC that is harmless: nobody drives the bus, so it reads all
 * ones, and writes are lost. (hvemu traces it, and with --strict ends the guest.) */
#include "../lib/report.h"

#define NO_PORT 0x1234
#define NO_MEMORY 0xD0000000u

void main(void)
{
    outb(NO_PORT, 0x55);
    report("a byte from nowhere", inb(NO_PORT) == 0xFF);
    report("a word from nowhere", inw(NO_PORT) == 0xFFFF);
    report("a double word from nowhere", inl(NO_PORT) == 0xFFFFFFFF);

    write32(NO_MEMORY, 0x12345678);
    u32 value = read32(NO_MEMORY);
    if (value == 0)
        report_skip("memory from nowhere", "this machine's empty bus reads zeros");
    else
        report("memory from nowhere", value == 0xFFFFFFFF);
}
