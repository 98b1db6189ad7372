/* The report: "PASS name" or "FAIL name" a line, and the verdict (as lib/report.h, on whatever the machine has). */
#include "../abi/machine_map.h"
#include "kernel.h"

static u32 passed, failed;

void say(const char *text)
{
    u32 length = 0;
    while (text[length])
        length++;
    machine_write(text, length);
}

void check(const char *name, bool ok)
{
    ok ? passed++ : failed++;
    say(ok ? "PASS " : "FAIL ");
    say(name);
    say("\n");
}

void verdict(void)
{
    machine_end(failed ? VERDICT_FAIL : passed ? VERDICT_PASS : VERDICT_SKIP);
}
