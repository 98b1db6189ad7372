/* "NAME=COUNT" on the command line: that operation so many times. Without any: those that
 * every machine has, a few times each, as a test. */
#include "../lib/string.h"
#include "operations.h"

#define A_FEW 32

void nanobench(const char *command_line)
{
    bool asked = false;
    for (const struct Benchmark *b = benchmarks; b->name; b++) {
        u32 count = option(command_line, b->name, 0);
        if (!count)
            continue;
        asked = true;
        say(b->name, b->run(count) == count);
    }
    if (asked)
        return;
    for (const struct Benchmark *b = benchmarks; b->name; b++)
        if (!b->special)
            say(b->name, b->run(A_FEW) == A_FEW);
}
