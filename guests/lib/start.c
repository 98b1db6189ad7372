/* From the loader's hand-over to main(), and from main() to the verdict. */
#include "interrupts.h"
#include "multiboot.h"
#include "report.h"
#include "segments.h"

void main(const struct Multiboot *information);

void start(u32 magic, const struct Multiboot *information)
{
    load_segments();
    load_interrupts();
    if (magic == MULTIBOOT_LOADED)
        main(information);
    else
        report("started by a multiboot loader", false);
    finish();
}

const char *command_line(const struct Multiboot *information)
{
    if (!(information->flags & MULTIBOOT_HAS_COMMAND_LINE))
        return "";
    const char *p = information->command_line;
    while (*p && *p != ' ')
        p++;
    while (*p == ' ')
        p++;
    return p;
}
