/* Who am I running on? CPUID answers, and a hypervisor decides what it answers: that is how it hides what it cannot
 * do, and how it shows that it is there. (SDM volume 2A, CPUID; the 0x4000_0000 leaves are a convention.) */
#include "../lib/report.h"
#include "../lib/string.h"

#define ONE_NAME 12
struct Feature { u8 bit; char name[ONE_NAME]; };

static const struct Feature leaf1_edx[] = {
    {0, "fpu"}, {3, "pse"}, {4, "tsc"}, {5, "msr"}, {6, "pae"}, {8, "cx8"}, {9, "apic"}, {11, "sep"}, {12, "mtrr"},
    {13, "pge"}, {15, "cmov"}, {16, "pat"}, {17, "pse36"}, {19, "clflush"}, {23, "mmx"}, {24, "fxsr"}, {25, "sse"},
    {26, "sse2"}, {28, "htt"},
};
static const struct Feature leaf1_ecx[] = {
    {0, "sse3"}, {1, "pclmulqdq"}, {3, "monitor"}, {5, "vmx"}, {9, "ssse3"}, {12, "fma"}, {13, "cx16"}, {17, "pcid"},
    {19, "sse4.1"}, {20, "sse4.2"}, {21, "x2apic"}, {22, "movbe"}, {23, "popcnt"}, {24, "deadline"}, {25, "aes"},
    {26, "xsave"}, {28, "avx"}, {30, "rdrand"}, {31, "hypervisor"},
};
static const struct Feature extended_edx[] = { {11, "syscall"}, {20, "nx"}, {26, "1gib"}, {27, "rdtscp"}, {29, "lm"} };
static const struct Feature extended_ecx[] = { {0, "lahf"}, {2, "svm"}, {5, "abm"}, {6, "sse4a"} };

static void print_features(const char *title, u32 word, const struct Feature *names, u32 count)
{
    print("%s 0x%x:", title, word);
    for (u32 i = 0; i < count; i++)
        if (word >> names[i].bit & 1)
            print(" %s", names[i].name);
    print("\n");
}
#define PRINT_FEATURES(title, word, names) print_features(title, word, names, sizeof names / sizeof *names)

/* A vendor is twelve letters in three registers. */
static void spell(char *text, u32 a, u32 b, u32 c)
{
    u32 words[3] = { a, b, c };
    memcpy(text, words, 12);
    text[12] = 0;
}

static bool printable(const char *text)
{
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            return false;
    return true;
}

void main(void)
{
    /* Leaf 0: the highest leaf, and the vendor in the odd order EBX, EDX, ECX */
    struct Cpuid r = cpuid(0);
    char vendor[13];
    spell(vendor, r.ebx, r.edx, r.ecx);
    u32 highest = r.eax;
    print("vendor %s, highest leaf 0x%x\n", vendor, highest);
    report("the vendor has twelve letters", printable(vendor) && vendor[11]);
    report("leaf 1 exists", highest >= 1);

    /* Leaf 1: signature and features. Family and model got extensions when four bits were not enough. */
    r = cpuid(1);
    u32 family = r.eax >> 8 & 15, model = r.eax >> 4 & 15;
    if (family == 6 || family == 15)
        model |= r.eax >> 12 & 0xF0;
    if (family == 15)
        family += r.eax >> 20 & 0xFF;
    print("family %u model %u stepping %u\n", family, model, r.eax & 15);
    PRINT_FEATURES("leaf 1 EDX", r.edx, leaf1_edx);
    PRINT_FEATURES("leaf 1 ECX", r.ecx, leaf1_ecx);
    report("the family is 5 or later", family >= 5);
    report("there is an FPU, a TSC and CMPXCHG8B", (r.edx & 0x111) == 0x111);
    report("MSRs come with SYSENTER", !(r.edx & CPUID_EDX_SEP) || r.edx & 1 << 5);
    bool hypervisor = r.ecx >> 31;

    /* Leaves 0x8000_0000: AMD's, which everyone took over. The brand is 48 bytes in three leaves. */
    u32 extended = cpuid(0x80000000).eax;
    if (extended >= 0x80000004) {
        char brand[49];
        for (u32 leaf = 0; leaf < 3; leaf++) {
            r = cpuid(0x80000002 + leaf);
            memcpy(brand + leaf * 16, &r, 16);
        }
        brand[48] = 0;
        print("brand %s\n", brand);
        report("the brand is text", printable(brand));
    } else {
        report_skip("the brand is text", "CPUID has no leaf 0x80000004");
    }
    if (extended >= 0x80000001) {
        r = cpuid(0x80000001);
        PRINT_FEATURES("leaf 0x80000001 EDX", r.edx, extended_edx);
        PRINT_FEATURES("leaf 0x80000001 ECX", r.ecx, extended_ecx);
    }

    /* Leaves 0x4000_0000: no real CPU answers there; a hypervisor that wants to be seen does. */
    r = cpuid(0x40000000);
    char signature[13];
    spell(signature, r.ebx, r.ecx, r.edx);
    if (hypervisor && r.eax >= 0x40000000) {
        print("hypervisor \"%s\", highest leaf 0x%x\n", signature, r.eax);
        report("the hypervisor signs with text", printable(signature));
    } else {
        report_skip("the hypervisor signs with text", "no hypervisor says that it is here");
    }

    /* The answer to a question must not depend on when it is asked. */
    struct Cpuid again = cpuid(1), once = cpuid(1);
    report("CPUID says the same twice", memcmp(&again, &once, sizeof once) == 0);
}
