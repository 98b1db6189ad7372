/* Code that changes code: the natural enemy of every translator. On x86 a store to an instruction counts from the
 * next jump on at the latest, with no flush of any kind (SDM volume 3A, 8.1.3), and since the P6 at once. A hypervisor
 * that keeps translated copies must notice the store through whatever address it is made. */
#include "../lib/interrupts.h"
#include "../lib/paging.h"
#include "../lib/report.h"
#include "../lib/string.h"

#define ALL (PAGE_PRESENT | PAGE_WRITABLE)
#define ALIAS 0x40000000u               /* where experiments map a code page a second time */

/* mov $imm32, %eax; ret */
#define MOV_EAX 0xB8
#define RET 0xC3
static void write_function(u8 *at, u32 value)
{
    at[0] = MOV_EAX;
    memcpy(at + 1, &value, 4);
    at[5] = RET;
}

static u32 call(u32 address)
{
    u32 result;
    asm volatile("call *%1" : "=a"(result) : "r"(address) : "ecx", "edx", "memory", "cc");
    return result;
}

/* ---- without paging ---- */

static void patched_loop(void)
{
    /* ADD EAX, imm32 with an operand that the loop increments: 1 + 2 + ... + 1000. (By hand, because an assembler
     * would choose the form with an 8-bit operand.) */
    u32 sum = 0, left = 1000;
    asm volatile("1: .byte 0x05\n"
                 "2: .long 1\n"
                 "   incl 2b\n"
                 "   decl %1\n"
                 "   jnz 1b"
                 : "+a"(sum), "+r"(left) :: "memory", "cc");
    report("a loop that patches its own immediate", sum == 500500);
}

static void patch_ahead(void)
{
    /* The store changes the very next instruction, in the same straight line of code. */
    u32 result;
    asm volatile("movl $42, 1f + 1\n"
                 "1: movl $7, %0" : "=a"(result) :: "memory");
    report("patching the next instruction", result == 42);

    /* A loop that turns its exit from INC into DEC: opcode, not operand. */
    u32 value = 0;
    asm volatile("movl $3, %%ecx\n"
                 "1: nop\n"
                 "2: incl %0\n"
                 "movb $0x48, 2b\n"                     /* dec %eax */
                 "decl %%ecx\n"
                 "jnz 1b\n"
                 "movb $0x40, 2b"                       /* inc %eax, for the next one who comes by */
                 : "+a"(value) :: "ecx", "memory", "cc");
    report("patching an opcode behind us", value == (u32)-1);
}

static u8 buffer[4 * PAGE_SIZE] PAGE_TABLE;

static void copied_code(void)
{
    /* Make, run, make again at the same place: what every just-in-time compiler does. */
    u32 wrong = 0;
    for (u32 i = 0; i < 200; i++) {
        write_function(buffer, i * 3);
        wrong += call((u32)buffer) != i * 3;
    }
    report("code made anew 200 times at one place", wrong == 0);

    memcpy(buffer + PAGE_SIZE, buffer, 6);
    report("code copied elsewhere", call((u32)buffer + PAGE_SIZE) == 199 * 3);

    /* One store over two functions at once, by REP MOVS */
    static u8 image[16];
    write_function(image, 111);
    write_function(image + 8, 222);
    memcpy(buffer, image, 16);
    report("two functions in one copy", call((u32)buffer) == 111 && call((u32)buffer + 8) == 222);

    /* Data on the same page may change without making the code wrong, or slow for ever. */
    write_function(buffer, 5);
    volatile u32 *data = (volatile u32 *)(buffer + 256);
    u32 sum = 0;
    for (u32 i = 0; i < 1000; i++) {
        *data = i;
        sum += call((u32)buffer) + *data;
    }
    report("code and data on one page", sum == 5 * 1000 + 999 * 1000 / 2);
}

static void crossing_pages(void)
{
    /* B8 | imm32 with two immediate bytes on each side of the border; then only the far side is patched. */
    u8 *at = buffer + 2 * PAGE_SIZE - 3;
    write_function(at, 0x11112222);
    bool before = call((u32)at) == 0x11112222;
    buffer[2 * PAGE_SIZE] = 0x33;
    buffer[2 * PAGE_SIZE + 1] = 0x44;
    report("an instruction across two pages, patched behind the border", before && call((u32)at) == 0x44332222);
    at[1] = 0x55;
    report("the same, patched before the border", call((u32)at) == 0x44332255);
}

/* ---- with paging: one frame, two addresses ---- */

static u32 directory[1024] PAGE_TABLE, window_table[1024] PAGE_TABLE;

static void aliases(void)
{
    directory[0] = ALL | PAGE_LARGE;
    directory[ALIAS >> 22] = (u32)window_table | ALL;
    window_table[0] = (u32)buffer | ALL;
    write_cr4(read_cr4() | CR4_PSE);
    write_cr3((u32)directory);
    write_cr0(read_cr0() | CR0_PG);

    u32 wrong = 0;
    for (u32 i = 0; i < 100; i++) {
        write_function((u8 *)ALIAS, i);
        wrong += call((u32)buffer) != i;
        write_function(buffer, i + 1000);
        wrong += call(ALIAS) != i + 1000;
    }
    report("written through one address, run through another", wrong == 0);

    /* Read-only where it runs (with WP), writable where it is written: W^X as a real kernel does it. */
    window_table[1] = (u32)buffer | PAGE_PRESENT;
    write_cr0(read_cr0() | CR0_WP);
    wrong = 0;
    for (u32 i = 0; i < 100; i++) {
        write_function((u8 *)ALIAS, i);
        wrong += call(ALIAS + PAGE_SIZE) != i;
    }
    report("written through a writable alias, run through a read-only one", wrong == 0);

    /* No store at all: other frames move under the same address. */
    write_function(buffer, 1);
    write_function(buffer + PAGE_SIZE, 2);
    wrong = 0;
    for (u32 i = 0; i < 100; i++) {
        window_table[2] = ((u32)buffer + (i & 1) * PAGE_SIZE) | ALL;
        invlpg(ALIAS + 2 * PAGE_SIZE);
        wrong += call(ALIAS + 2 * PAGE_SIZE) != 1 + (i & 1);
    }
    report("remapping changes the code at an address", wrong == 0);

    /* The same for the second half of one instruction. */
    u8 *first = buffer, *second = buffer + PAGE_SIZE, *third = buffer + 2 * PAGE_SIZE;
    u8 code[6];
    write_function(code, 0x11112222);
    memcpy(first + PAGE_SIZE - 3, code, 3);
    memcpy(second, code + 3, 3);
    write_function(code, 0x55552222);
    memcpy(third, code + 3, 3);
    window_table[3] = (u32)first | ALL;
    window_table[4] = (u32)second | ALL;
    u32 at = ALIAS + 4 * PAGE_SIZE - 3;
    bool before = call(at) == 0x11112222;
    window_table[4] = (u32)third | ALL;
    invlpg(ALIAS + 4 * PAGE_SIZE);
    report("remapping the second half of an instruction", before && call(at) == 0x55552222);
}

/* ---- PAE and NX: the writable alias may not even be executable ---- */

static u64 pointers[4] __attribute__((aligned(32)));
static u64 wide_directory[512] PAGE_TABLE, alias_directory[512] PAGE_TABLE, alias_table[512] PAGE_TABLE;

static void no_execute_alias(void)
{
    if (!cpu_has(CPUID_EDX_PAE) || !cpu_has_nx()) {
        report_skip("written through an NX alias", "CPUID does not list PAE and NX");
        return;
    }
    pointers[0] = (u32)wide_directory | PAGE_PRESENT;
    pointers[1] = (u32)alias_directory | PAGE_PRESENT;
    wide_directory[0] = 0x000000 | ALL | PAGE_LARGE;
    wide_directory[1] = 0x200000 | ALL | PAGE_LARGE;
    alias_directory[0] = (u32)alias_table | ALL;
    alias_table[0] = (u32)buffer | ALL | PAGE_NO_EXECUTE;
    write_cr0(read_cr0() & ~CR0_PG);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
    write_cr4((read_cr4() & ~CR4_PSE) | CR4_PAE);
    write_cr3((u32)pointers);
    write_cr0(read_cr0() | CR0_PG);

    u32 wrong = 0;
    for (u32 i = 0; i < 100; i++) {
        write_function((u8 *)ALIAS, i * 7);
        wrong += call((u32)buffer) != i * 7;
    }
    report("written through an NX alias", wrong == 0);

    /* One page that is data, then code, then data, then code: NX goes on and off. */
    wrong = 0;
    for (u32 i = 0; i < 20; i++) {
        alias_table[1] = (u32)(buffer + PAGE_SIZE) | ALL | PAGE_NO_EXECUTE;
        invlpg(ALIAS + PAGE_SIZE);
        write_function((u8 *)ALIAS + PAGE_SIZE, i + 500);
        alias_table[1] = (u32)(buffer + PAGE_SIZE) | PAGE_PRESENT;
        invlpg(ALIAS + PAGE_SIZE);
        wrong += call(ALIAS + PAGE_SIZE) != i + 500;
    }
    report("a page that turns from data into code and back", wrong == 0);
}

void main(void)
{
    patched_loop();
    patch_ahead();
    copied_code();
    crossing_pages();
    aliases();
    no_execute_alias();
}
