/* Where far transfers arrive. Each landing writes the second mark first, then looks around, and goes back. The CS in a
 * frame is what the CPU pushed; the CS that we run with is in the frame of one more interrupt. DS is flat in both
 * rings, so nothing is reloaded on the way. */
#include "../abi/machine_map.h"
#include "scene.h"

        .text
        .globl  call_landing, int_landing, jmp_landing, look_at_cs

        .macro  LANDED frame
        pushl   %eax
        movb    $MARK_AFTER, %al
        outb    %al, $POST_PORT
        incl    transferred
        .if     \frame
        movl    4(%esp), %eax
        movl    %eax, pushed_eip
        movl    8(%esp), %eax
        movl    %eax, pushed_cs
        .endif
        int     $LOOK
        popl    %eax
        .endm

call_landing:
        LANDED  1
        lret

int_landing:
        LANDED  1
        iret

jmp_landing:                            # of RET, too
        LANDED  0
        ljmp    *way_back

look_at_cs:
        pushl   %eax
        movl    8(%esp), %eax
        movl    %eax, running_cs
        popl    %eax
        iret
