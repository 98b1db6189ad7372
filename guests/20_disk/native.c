/* A PC: three adapters, from the oldest to the youngest, and the interrupts of the 8259s. */
#include "../lib/interrupts.h"
#include "../lib/irq.h"
#include "../lib/multiboot.h"
#include "../lib/string.h"
#include "disk.h"

#define SPURIOUS_MASTER 7
#define SPURIOUS_SLAVE 15

static const struct Adapter { const char *option, *name; bool (*find)(struct Disk *); } adapters[] = {
    { "adapter=virtio-scsi", "virtio-scsi", virtio_find },
    { "adapter=buslogic", "buslogic", buslogic_find },
    { "adapter=ide", "ide", ide_find },
};
#define ADAPTERS (sizeof adapters / sizeof *adapters)

/* ---- Interrupts ---- */

static bool (*acknowledge_adapter)(void);
static u32 adapter_line;
static volatile bool adapter_done;

static void on_adapter(struct Frame *frame)
{
    (void)frame;
    if (acknowledge_adapter())
        adapter_done = true;
    end_of_interrupt(adapter_line);
}

static void on_spurious_slave(struct Frame *frame)
{
    (void)frame;
    end_of_interrupt(IRQ_VECTOR % 8);   /* the master has really had one from the slave */
}

static void on_spurious_master(struct Frame *frame)
{
    (void)frame;
}

void listen(u32 line, bool (*acknowledge)(void))
{
    mask_irq(adapter_line);
    adapter_line = line;
    acknowledge_adapter = acknowledge;
    adapter_done = false;
    handle(IRQ_VECTOR + line, on_adapter);
    unmask_irq(line);
}

void wait_for_adapter(void)
{
    while (!adapter_done)
        wait_for_interrupt();
    adapter_done = false;
}

const char *find_disk(const char *options, struct Disk *disk)
{
    bool chosen = option(options, "adapter", 1) == 0;   /* "adapter=" without a number is 0, its absence 1 */
    for (const struct Adapter *adapter = adapters; adapter < adapters + ADAPTERS; adapter++)
        if ((!chosen || has_word(options, adapter->option)) && adapter->find(disk))
            return adapter->name;
    return 0;
}

void main(const struct Multiboot *information)
{
    remap_pics();
    handle(IRQ_VECTOR + SPURIOUS_MASTER, on_spurious_master);
    handle(IRQ_VECTOR + SPURIOUS_SLAVE, on_spurious_slave);
    play(command_line(information));
}
