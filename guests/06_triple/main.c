/* The end of the line. An exception needs a gate; if there is none, that is #GP, which needs a gate, which makes #DF,
 * which needs a gate: then the CPU gives up and shuts down. A PC resets; a hypervisor can say what happened. */
#include "../lib/report.h"

void main(void)
{
    print("three faults and out\n");

    /* An IDT of limit 0 has no room for any gate. */
    struct { u16 limit; u32 base; } __attribute__((packed)) idtr = { 0, 0 };
    asm volatile("lidt %0\n ud2" :: "m"(idtr) : "memory");

    report("nobody ever sees this line", false);
}
