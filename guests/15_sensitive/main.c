/* Sensitive instructions: each of the 18 is executed once in ring 0 and once in ring 3, and says what it saw. There is
 * no right or wrong here; what native says is what the manual says, and whatever another technique says is compared
 * with that. */
#include "../abi/machine_map.h"
#include "../lib/interrupts.h"
#include "../lib/irq.h"
#include "../lib/multiboot.h"
#include "../lib/report.h"
#include "../lib/string.h"
#include "../lib/user.h"
#include "probes.h"
#include "scene.h"

#define ROW(mnemonic) { #mnemonic " kernel", #mnemonic " user", probe_##mnemonic }
static const struct { const char *in_kernel, *in_user; void (*probe)(void); } rows[] = {
    ROW(sgdt), ROW(sidt), ROW(sldt), ROW(smsw), ROW(pushf), ROW(popf),
    ROW(lar), ROW(lsl), ROW(verr), ROW(verw), ROW(pop), ROW(push),
    ROW(call), ROW(jmp), ROW(int), ROW(ret), ROW(str), ROW(mov),
};

static void (*program)(void);
static u8 user_stack[4096] __attribute__((aligned(16)));

static void user_program(void)
{
    program();
    asm volatile("int %0" :: "i"(EXIT));
}

static void on_exit(struct Frame *frame)
{
    (void)frame;
    leave_user(0);
}

static void play(const char *name, bool user, void (*probe)(void))
{
    seen_count = 0;
    caught.count = 0;
    in_user_mode = user;
    program = probe;
    if (user)
        run_user(user_program, user_stack + sizeof user_stack, EFLAGS_FIXED);
    else
        probe();
    cli();

    print("%s\n", name);
    for (u32 i = 0; i < seen_count; i++) {
        print("SAW %s%s%s=", seen[i].subject, *seen[i].subject ? "." : "", seen[i].name);
        print(seen[i].hexadecimal ? "0x%x\n" : "%u\n", seen[i].value);
    }
    report(name, seen_count > 0);
}

void main(const struct Multiboot *information)
{
    const char *wanted = command_line(information);
    bool all = !*wanted || strings_equal(wanted, "all"), known = all;

    cli();
    write_cr0(read_cr0() & ~(CR0_PG | CR0_WP));
    set_scene(call_landing, int_landing, look_at_cs);
    remap_pics();
    handle(IRQ_VECTOR + IRQ_TIMER, on_timer);
    handle(IRQ_VECTOR + 7, on_spurious);
    handle(EXIT, on_exit);
    for (u32 vector = 0; vector < 0x20; vector++)
        handle(vector, note_exception);

    for (u32 user = 0; user < 2; user++) {
        for (u32 i = 0; i < sizeof rows / sizeof *rows; i++) {
            const char *name = user ? rows[i].in_user : rows[i].in_kernel;
            if (!all && !strings_equal(wanted, name))
                continue;
            known = true;
            play(name, user, rows[i].probe);
        }
    }
    if (!known) {
        print("\"%s\" is not \"all\" and not INSTRUCTION RING, as in \"sgdt kernel\" or \"popf user\"\n", wanted);
        report("the command line names an instruction and a ring", false);
    }
}
