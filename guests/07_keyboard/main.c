/* A keyboard driver: the i8042 raises IRQ 1 for every byte that the keyboard sends, we turn scancodes into letters
 * and show them on COM1, until Enter. (PC/AT Technical Reference; scancode set 1.) */
#include "../abi/machine_map.h"
#include "../lib/interrupts.h"
#include "../lib/irq.h"
#include "../lib/report.h"

/* i8042 status, commands and configuration byte */
#define OUTPUT_FULL 0b00000001
#define INPUT_FULL 0b00000010
#define READ_CONFIGURATION 0x20
#define WRITE_CONFIGURATION 0x60
#define SELF_TEST 0xAA
#define ENABLE_KEYBOARD 0xAE
#define KEYBOARD_INTERRUPT 0b00000001
#define KEYBOARD_CLOCK_OFF 0b00010000
#define TRANSLATE 0b01000000            /* the keyboard speaks set 2, the PC wants set 1 */

#define LEFT_SHIFT 0x2A
#define RIGHT_SHIFT 0x36
#define RELEASED 0x80

static const char plain[] = "\0\033" "1234567890-=\b\tqwertyuiop[]\n\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
static const char shifted[] = "\0\033" "!@#$%^&*()_+\b\tQWERTYUIOP{}\n\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";

static char line[64];
static u32 length, interrupts;
static volatile bool complete;
static bool shift;

static void command(u8 value)
{
    while (inb(I8042_COMMAND) & INPUT_FULL)
        ;
    outb(I8042_COMMAND, value);
}

static u8 receive(void)
{
    while (!(inb(I8042_COMMAND) & OUTPUT_FULL))
        ;
    return inb(I8042_DATA);
}

static void on_key(struct Frame *frame)
{
    (void)frame;
    interrupts++;
    u8 code = inb(I8042_DATA);
    end_of_interrupt(IRQ_KEYBOARD);
    if ((code & ~RELEASED) == LEFT_SHIFT || (code & ~RELEASED) == RIGHT_SHIFT)
        shift = !(code & RELEASED);
    if (code >= sizeof plain)                   /* releases, and keys we have no letter for */
        return;
    char letter = shift ? shifted[code] : plain[code];
    if (!letter || complete)
        return;
    if (letter == '\n')
        complete = true;
    else if (length < sizeof line - 1)
        line[length++] = letter;
    print("%c", letter);
}

void main(void)
{
    remap_pics();
    handle(IRQ_VECTOR + IRQ_KEYBOARD, on_key);

    /* Throw away what lies in the buffer, test the controller, switch the keyboard and its interrupt on. */
    while (inb(I8042_COMMAND) & OUTPUT_FULL)
        inb(I8042_DATA);
    command(SELF_TEST);
    report("the controller passes its self test", receive() == 0x55);
    command(READ_CONFIGURATION);
    u8 configuration = receive();
    command(WRITE_CONFIGURATION);
    outb(I8042_DATA, (configuration | KEYBOARD_INTERRUPT | TRANSLATE) & ~KEYBOARD_CLOCK_OFF);
    command(ENABLE_KEYBOARD);
    unmask_irq(IRQ_KEYBOARD);

    print("type a line and press Enter\n");
    while (!complete)
        wait_for_interrupt();
    print("you typed \"%s\"\n", line);
    report("a line was typed", length > 0);
    report("every letter came by interrupt", interrupts > length);
}
