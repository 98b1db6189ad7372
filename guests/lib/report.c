/* COM1, the report lines and the verdict. */
#include "report.h"
#include "../abi/machine_map.h"

/* 16550 registers, offsets from COM1_BASE (National Semiconductor PC16550D, table II) */
#define TRANSMIT_HOLDING 0
#define LINE_STATUS 5
#define LINE_STATUS_THR_EMPTY 0x20

static u32 passed, failed;

#ifdef PARAVIRT
void put(char c);                       /* there is no COM1: a ported guest has its own way */
#else
static void put(char c)
{
    while (!(inb(COM1_BASE + LINE_STATUS) & LINE_STATUS_THR_EMPTY))
        ;
    outb(COM1_BASE + TRANSMIT_HOLDING, c);
}
#endif

static void put_number(u32 value, u32 base)
{
    char digits[10];
    int n = 0;
    do
        digits[n++] = "0123456789abcdef"[value % base];
    while (value /= base);
    while (n)
        put(digits[--n]);
}

static void print_list(const char *format, __builtin_va_list arguments)
{
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (const char *s = __builtin_va_arg(arguments, const char *); *s; s++)
                put(*s);
            break;
        case 'd': {
            int value = __builtin_va_arg(arguments, int);
            if (value < 0)
                put('-');
            put_number(value < 0 ? -(u32)value : (u32)value, 10);
            break;
        }
        case 'u': put_number(__builtin_va_arg(arguments, u32), 10); break;
        case 'x': put_number(__builtin_va_arg(arguments, u32), 16); break;
        case 'c': put(__builtin_va_arg(arguments, int)); break;
        default: put(*format);
        }
    }
}

void print(const char *format, ...)
{
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    print_list(format, arguments);
    __builtin_va_end(arguments);
}

void report(const char *name, bool ok)
{
    ok ? passed++ : failed++;
    print("%s %s\n", ok ? "PASS" : "FAIL", name);
}

void report_skip(const char *name, const char *why)
{
    print("SKIP %s: %s\n", name, why);
}

void finish(void)
{
    outb(DEBUG_EXIT_PORT, failed ? VERDICT_FAIL : passed ? VERDICT_PASS : VERDICT_SKIP);
    /* Without the device there is nobody to tell: sleep for good. */
    for (;;)
        asm volatile("cli; hlt");
}
