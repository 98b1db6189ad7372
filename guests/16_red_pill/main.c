/* The red pill: a kernel asks the CPU what it has loaded into it, by instructions that do not trap. Whoever has moved
 * the kernel to ring 1 has loaded something else, and the CPU tells (SIDT alone sufficed in Rutkowska's "Red Pill",
 * 2004). It only reports: being virtual is not an error. */
#include "../lib/interrupts.h"
#include "../lib/report.h"
#include "../lib/segments.h"
#include "../lib/string.h"

#define OUR_TSS 0x58                    /* not where most would put it */

struct TableRegister { u16 limit; u32 base; } __attribute__((packed));

extern const char vectors[256][16];
static u64 gdt[OUR_TSS / 8 + 1], idt[256];
static u32 witnesses, against;

/* ---- the sensitive instructions ---- */

static u32 read_cs(void) { u32 value = 0; asm volatile("movw %%cs, %w0" : "+r"(value)); return value; }
static u32 read_tr(void) { u32 value = 0; asm volatile("strw %w0" : "+r"(value)); return value; }
static u32 read_msw(void) { u32 value; asm volatile("smswl %0" : "=r"(value)); return value; }
static u32 read_flags(void) { u32 value; asm volatile("pushfl; popl %0" : "=r"(value) :: "memory"); return value; }

static struct TableRegister read_gdtr(void)
{
    struct TableRegister value;
    asm volatile("sgdt %0" : "=m"(value));
    return value;
}

static struct TableRegister read_idtr(void)
{
    struct TableRegister value;
    asm volatile("sidt %0" : "=m"(value));
    return value;
}

/* ---- our own tables ---- */

static void load_tables(void)
{
    u32 tss = (u32)&task_state;
    gdt[KERNEL_CODE / 8] = 0x00CF9B000000FFFF;          /* flat, as the library's */
    gdt[KERNEL_DATA / 8] = 0x00CF93000000FFFF;
    gdt[OUR_TSS / 8] = (sizeof task_state - 1) | (u64)(tss & 0xFFFFFF) << 16
                     | (u64)(PRESENT | AVAILABLE_TSS) << 40 | (u64)(tss >> 24) << 56;
    for (u32 vector = 0; vector < 256; vector++)
        idt[vector] = (u64)((u32)vectors[vector] & 0xFFFF) | (u64)KERNEL_CODE << 16 | (u64)INTERRUPT_GATE << 40
                    | (u64)((u32)vectors[vector] >> 16) << 48;

    struct TableRegister gdtr = { sizeof gdt - 1, (u32)gdt }, idtr = { sizeof idt - 1, (u32)idt };
    asm volatile("lgdt %0; lidt %1; ltr %w2" :: "m"(gdtr), "m"(idtr), "r"(OUR_TSS) : "memory");
    asm volatile("ljmp %0, $1f; 1: movw %w1, %%ds; movw %w1, %%es; movw %w1, %%ss"
                 :: "i"(KERNEL_CODE), "r"(KERNEL_DATA) : "memory");
}

/* ---- the hearing ---- */

static void hear(const char *question, u32 loaded, u32 says)
{
    bool agrees = loaded == says;
    witnesses++;
    against += !agrees;
    print("%s: should be 0x%x, is 0x%x%s\n", question, loaded, says, agrees ? "" : " (!)");
}

void main(void)
{
    write_cr0(read_cr0() & ~CR0_PG);
    load_tables();
    cli();

    hear("MOV from CS, RPL", 0, read_cs() & 3);
    hear("PUSHF after CLI, IF", 0, read_flags() & EFLAGS_IF);
    hear("SMSW without paging, PG", 0, read_msw() & CR0_PG);
    hear("STR", OUR_TSS, read_tr());
    struct TableRegister gdtr = read_gdtr(), idtr = read_idtr();
    hear("SGDT, limit", sizeof gdt - 1, gdtr.limit);
    hear("SGDT, base", (u32)gdt, gdtr.base);
    hear("SIDT, limit", sizeof idt - 1, idtr.limit);
    hear("SIDT, base", (u32)idt, idtr.base);

    report("every witness was heard", witnesses == 8);
    if (against)
        print("deprivileged: %u of %u witnesses\n", against, witnesses);
    else
        print("not deprivileged\n");
}
