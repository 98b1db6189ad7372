"""What modes that deprivilege a kernel have in common: the physical CPU brings every exception to the hypervisor."""

from typing import Final

from hvemu.cpu.delivery import PAGE_FAULT, Event
from hvemu.cpu.msr import EFER, FS_BASE, GS_BASE
from hvemu.cpu.segment_loads import NotEmulated
from hvemu.engine import layout
from hvemu.modes.direct_execution import DirectExecution
from hvemu.modes.live_cpu import LiveCpu
from hvemu.modes.stretches import Services
from hvemu.vocabulary.exits import AssistKind, ExitKind
from hvemu.vocabulary.paging import EFER_LME, EFER_SCE

_INSTEAD: Final = "use --mode native, or hide long mode from the guest with --cpu MODEL,-lm"
LONG_MODE: Final = f"the guest turns on long mode (EFER.LME), but mode {{}} runs no 64-bit code; {_INSTEAD}"
NO_VIRTUAL_8086: Final = "the guest went to virtual-8086 mode, which does not exist here; use --mode native"
"""The engine lets IRET go there from any ring, even in compatibility mode; a CPU would not."""


def refuse_long_mode(mode: str, index: int, value: int) -> None:
    """What WRMSR would start that only 64-bit code needs ends the guest; raises NotEmulated."""
    if index == EFER and value & EFER_LME:
        raise NotEmulated(LONG_MODE.format(mode))
    if index == EFER and value & EFER_SCE:
        raise NotEmulated(f"the guest turns on SYSCALL (EFER.SCE), which mode {mode} does not have; {_INSTEAD}")
    if index in (FS_BASE, GS_BASE) and value:
        raise NotEmulated(f"the guest moves FS or GS by an MSR, which mode {mode} does not have; {_INSTEAD}")


class Reflection(DirectExecution):
    """Exceptions and INT n of the guest are exits, which the hypervisor reflects to the guest."""

    _engine_holds_if = False

    def __init__(self, services: Services, cpu: LiveCpu) -> None:
        super().__init__(services, cpu)
        self._is_amd = False  # SYSCALL of 32-bit code needs EFER.SCE, which is refused

    def _bits(self) -> int:
        return 32 if self._words[layout.WORD_HFLAGS] & (1 << 4) else 16

    def _record(self, kind: AssistKind, event: Event) -> None:
        """What the physical CPU would bring to the hypervisor, which reflects it to the guest, is an exit."""
        if kind is AssistKind.SOFTWARE_INTERRUPT:
            self._exit(ExitKind.REFLECTED_INTERRUPT, event.vector)
        elif event.vector == PAGE_FAULT and kind is AssistKind.EXCEPTION:
            self._exit(ExitKind.TRUE_FAULT, event.error_code or 0)
        elif kind is AssistKind.EXCEPTION:
            self._exit(ExitKind.REFLECTED_EXCEPTION, event.vector)
        else:
            super()._record(kind, event)
