/* The classic end of a kernel: it runs out of stack. With paging on and nothing mapped at the top of the address
 * space, ESP = 0 makes every push a page fault, and its delivery needs a push: #PF, #DF, triple fault. */
#include "../lib/paging.h"
#include "../lib/report.h"

static u32 directory[1024] PAGE_TABLE;

void main(void)
{
    /* The first 4 MiB map to themselves, the rest is absent. */
    directory[0] = PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE;
    write_cr4(read_cr4() | CR4_PSE);
    write_cr3((u32)directory);
    write_cr0(read_cr0() | CR0_PG);

    print("and now without a stack\n");
    asm volatile("xorl %esp, %esp\n int3");
    __builtin_unreachable();
}
