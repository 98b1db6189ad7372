/* Switching a PC off takes a treasure hunt: RSDP -> RSDT -> FADT -> the PM1a control port, and FADT -> DSDT -> the
 * object _S5, which holds the value to write. (ACPI 6.4: 5.2 for the tables, 4.8.3.2 for the register.) */
#include "../abi/machine_map.h"
#include "../lib/report.h"
#include "../lib/string.h"

struct Header { char signature[4]; u32 length; u8 revision, checksum; char oem[6], table[8]; u32 rest[3]; };

struct __attribute__((packed)) Rsdp { char signature[8]; u8 checksum; char oem[6]; u8 revision; u32 rsdt; };

struct __attribute__((packed)) Fadt {
    struct Header header;
    u32 facs, dsdt;
    u8 model, profile;
    u16 sci;
    u32 smi_command;
    u8 acpi_enable, acpi_disable, s4bios, pstate;
    u32 pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control, pm_timer;
};

struct __attribute__((packed)) Madt { struct Header header; u32 apic_address, flags; u8 entries[]; };

/* PM1 control register */
#define SCI_ENABLED 0x0001
#define SLEEP_TYPE_SHIFT 10
#define SLEEP 0x2000

static bool sums_to_zero(const void *table, u32 length)
{
    u8 sum = 0;
    for (u32 i = 0; i < length; i++)
        sum += ((const u8 *)table)[i];
    return sum == 0;
}

static const struct Rsdp *find_rsdp(void)
{
    /* On a 16-byte boundary somewhere in the BIOS area */
    for (u32 address = ROM_BASE; address < HIGH_MEMORY; address += 16)
        if (memcmp((const void *)address, "RSD PTR ", 8) == 0 && sums_to_zero((const void *)address, 20))
            return (const struct Rsdp *)address;
    return 0;
}

static const void *find_table(const struct Header *rsdt, const char *signature)
{
    const u32 *entries = (const u32 *)(rsdt + 1);
    for (u32 i = 0; i < (rsdt->length - sizeof *rsdt) / 4; i++)
        if (memcmp((const void *)entries[i], signature, 4) == 0)
            return (const void *)entries[i];
    return 0;
}

static void look_at_madt(const struct Madt *madt)
{
    report("MADT: its bytes sum to zero", sums_to_zero(madt, madt->header.length));
    report("MADT: the local APIC is where it belongs", madt->apic_address == LAPIC_BASE);
    u32 processors = 0, ioapics = 0, timer_pin = 0, size = madt->header.length - sizeof *madt;
    for (u32 at = 0; at < size && madt->entries[at + 1]; at += madt->entries[at + 1]) {
        const u8 *entry = madt->entries + at;
        if (entry[0] == 0 && entry[4] & 1)                      /* processor, enabled */
            processors++;
        if (entry[0] == 1 && *(const u32 *)(entry + 4) == IOAPIC_BASE)
            ioapics++;
        if (entry[0] == 2 && entry[3] == IRQ_TIMER)             /* source override: line -> pin */
            timer_pin = *(const u32 *)(entry + 4);
    }
    report("MADT: one processor and one I/O APIC", processors == 1 && ioapics == 1);
    report("MADT: the timer's line is overridden to pin 2", timer_pin == TIMER_GSI);
}

/* _S5 is a package of small integers in AML, and we read just enough AML for that (ACPI 6.4, 20.2):
 * 08 "_S5_" 12 length count element... with an element 00 (zero), 01 (one) or 0A byte. */
static int find_sleep_type(const struct Header *dsdt)
{
    const u8 *end = (const u8 *)dsdt + dsdt->length;
    for (const u8 *p = (const u8 *)(dsdt + 1); p + 9 < end; p++) {
        if (memcmp(p, "_S5_", 4) != 0 || p[4] != 0x12)
            continue;
        const u8 *element = p + 6 + (p[5] >> 6) + 1;            /* top bits: how many more length bytes follow */
        return element[0] == 0x0A ? element[1] : element[0];
    }
    return -1;
}

void main(void)
{
    const struct Rsdp *rsdp = find_rsdp();
    report("RSDP: found below 1 MiB", rsdp);
    if (!rsdp)
        return;
    const struct Header *rsdt = (const struct Header *)rsdp->rsdt;
    report("RSDT: signature and sum",
           memcmp(rsdt->signature, "RSDT", 4) == 0 && sums_to_zero(rsdt, rsdt->length));

    const struct Madt *madt = find_table(rsdt, "APIC");
    report("MADT: found", madt);
    if (madt)
        look_at_madt(madt);

    const struct Fadt *fadt = find_table(rsdt, "FACP");
    report("FADT: found", fadt);
    if (!fadt)
        return;
    report("FADT: its bytes sum to zero", sums_to_zero(fadt, fadt->header.length));
    report("FADT: the PM timer's port", fadt->pm_timer == ACPI_PM_TIMER);
    const struct Header *dsdt = (const struct Header *)fadt->dsdt;
    report("DSDT: signature and sum",
           memcmp(dsdt->signature, "DSDT", 4) == 0 && sums_to_zero(dsdt, dsdt->length));
    int sleep_type = find_sleep_type(dsdt);
    report("DSDT: it tells how to sleep for good", sleep_type >= 0 && sleep_type < 8);
    if (sleep_type < 0)
        return;

    /* A machine that starts in legacy mode hands ACPI over on request, through the SMI command port. */
    if (!(inw(fadt->pm1a_control) & SCI_ENABLED) && fadt->smi_command) {
        outb(fadt->smi_command, fadt->acpi_enable);
        for (u32 i = 0; i < 100000 && !(inw(fadt->pm1a_control) & SCI_ENABLED); i++)
            ;
    }
    report("ACPI is in charge", inw(fadt->pm1a_control) & SCI_ENABLED);
    print("good night\n");
    outw(fadt->pm1a_control, (inw(fadt->pm1a_control) & SCI_ENABLED) | sleep_type << SLEEP_TYPE_SHIFT | SLEEP);

    /* The write takes effect soon, not at once. */
    for (volatile u32 i = 0; i < 10000000; i++)
        ;
    report("the power is off", false);
}
