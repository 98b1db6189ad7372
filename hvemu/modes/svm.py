"""Mode ``svm``: hardware virtualization with AMD-V. The guest kernel runs unmodified at its own ring 0, under VMRUN.

The engine's CPU does what such a CPU does: it runs the guest directly, and exits for what the VMCB's intercepts name.
Which these are is policy; the least are those without which the guest would see or change what is not its own. With
nested paging the MMU walks the guest's tables and the hypervisor's; ``SvmShadowMode`` is the hardware VMM of 2006,
which had shadow tables still. What the engine leaves out is a hardware assist here as in ``native``: delivery of
exceptions through the IDT, and I/O intercepts, whose exits come from its port hooks. External interrupts are delivered
by EVENTINJ, that is by the CPU itself.
"""

import re
from collections.abc import Callable
from typing import Final

from hvemu.cpu.debug_registers import DR6_FIXED, DR7_FIXED
from hvemu.cpu.decoder import Detailed, Instruction
from hvemu.cpu.delivery import (
    BREAKPOINT,
    DEBUG,
    INVALID_OPCODE,
    NMI,
    OVERFLOW,
    PAGE_FAULT,
    Escalated,
    Event,
    TripleFault,
    Unsupported,
)
from hvemu.cpu.device_access import DeviceAccess, device_access, loaded
from hvemu.cpu.linear import LinearFault, read_linear
from hvemu.cpu.msr import (
    CSTAR,
    KERNEL_GS_BASE,
    LSTAR,
    PAT,
    SFMASK,
    STAR,
    SYSENTER_CS,
    SYSENTER_EIP,
    SYSENTER_ESP,
)
from hvemu.cpu.privileged import ControlledCpu, PrivilegedInstructions, effective_address
from hvemu.cpu.sensitive import KernelInstructions
from hvemu.cpu.state import CS, EAX, EBX, ECX, EDX, ESP, FLAG_IF, FLAG_TF, FLAG_VM, VirtualCpu
from hvemu.engine import layout
from hvemu.engine.block_clock import ADDRESS, BIAS, BUDGET, LOADED, SIZE
from hvemu.engine.svm import EXIT_BASE, SvmHost
from hvemu.memory.frame_pool import FramePool
from hvemu.memory.nested import NestedPaging
from hvemu.memory.shadow import MMIO_WINDOW
from hvemu.memory.walk import walk
from hvemu.modes.delivery_plans import DeliveryPlans
from hvemu.modes.emulation import Emulation
from hvemu.modes.live_cpu import LiveCpu
from hvemu.modes.own_registers import OwnRegisters
from hvemu.modes.shadowed import paging_notes
from hvemu.modes.stretches import Services
from hvemu.modes.vmcb import Vmcb
from hvemu.trace.events import Exited
from hvemu.vocabulary.addresses import PAGE_SIZE
from hvemu.vocabulary.errors import ExitStatus
from hvemu.vocabulary.exits import AssistKind, ExitKind, Mmio
from hvemu.vocabulary.outcomes import Retire, Stop
from hvemu.vocabulary.paging import CR0_PE, EFER_LMA, EFER_NXE, ERROR_FETCH, ERROR_WRITE, LINEAR_MASK
from hvemu.vocabulary.svm import (
    EFER_SVME,
    EXIT_CODES,
    EXIT_CPUID,
    EXIT_EXCEPTION,
    EXIT_HLT,
    EXIT_NESTED_PAGE_FAULT,
    EXIT_SWINT,
)

_MINIMUM: Final = (
    *"cr0_write cr4_write cr8_read cr8_write cpuid hlt msr ioio tr_write shutdown intr nmi".split(),
    *"vmrun vmmcall vmload vmsave stgi clgi skinit invlpga".split(),
)
_DEBUG_REGISTERS: Final = range(0x20, 0x40)
_EXCEPTIONS: Final = range(EXIT_EXCEPTION, EXIT_EXCEPTION + 0x20)
_MSR_FIELDS: Final = {
    "STAR": STAR, "LSTAR": LSTAR, "CSTAR": CSTAR, "SFMASK": SFMASK, "KERNEL_GS_BASE": KERNEL_GS_BASE,
    "SYSENTER_CS": SYSENTER_CS, "SYSENTER_ESP": SYSENTER_ESP, "SYSENTER_EIP": SYSENTER_EIP, "G_PAT": PAT,
}  # fmt: skip
_AVAILABLE_TASKS: Final = frozenset({0x8100, 0x8900})
_GATES: Final = frozenset({0x86, 0x87, 0x8E, 0x8F})
_CPUID: Final = b"\x0f\xa2"
_CPUID_EXIT: Final = EXIT_BASE + EXIT_CPUID
_QUAD_CS_BASE: Final = (layout.BYTE_SEGMENTS + layout.SEGMENT_STRIDE * CS + 8) // 8
_PORTS_MAP_PAGES, _MSR_MAP_PAGES = 3, 2
_TRIES: Final = 16


class SvmMode(OwnRegisters, Emulation):
    """The guest under VMRUN, with nested paging of ``levels``."""

    name = "svm"
    _suspicious = re.compile(rb"\x0f\xc7")

    def __init__(self, services: Services, intercepts: frozenset[int] = frozenset(), levels: int = 4) -> None:
        vcpu, memory = services.vcpu, services.memory
        frames = services.own_frames()
        self._pool = FramePool(memory.machine, frames.start, len(frames))
        self.host = SvmHost(vcpu, self._pool, levels)
        self.vmcb = Vmcb(memory.machine.view, self.host.vmcb)
        self._maps = [self._pool.take() for _ in range(_PORTS_MAP_PAGES + _MSR_MAP_PAGES)]
        super().__init__(services, self._prepare(services))
        self._intercept_exits = self._exits[ExitKind.INTERCEPT.value]
        self._lifted: int | None = None  # an intercept that is out of force for one instruction
        self.last_exit: tuple[int, int, int] = (0, 0, 0)
        """Code, EXITINFO1 and EXITINFO2 of the last #VMEXIT."""
        self.exit_seen: Callable[[bool], None] | None = None
        """Told of every #VMEXIT, before it is handled and after, for those who look at the VMCB."""
        self._write_control_area(intercepts)
        self.connect()
        vcpu.map_ram(0, memory.machine.size, memory.machine.host_address)
        base, size, offset = MMIO_WINDOW, MMIO_WINDOW, MMIO_WINDOW
        if levels == 2:
            base, size, offset = memory.machine.size, (1 << 32) - memory.machine.size, 0
        vcpu.map_mmio(
            base,
            size,
            lambda address, size: self._read_mmio(address - offset, size),
            lambda address, size, value: self._on_mmio_write(address - offset, size, value),
        )
        vcpu.allow_mmio()

    def _prepare(self, services: Services) -> LiveCpu:
        """Make the paging technique, and the guest's registers as people see them."""
        vcpu = services.vcpu
        self.nested = NestedPaging(
            services.memory, self._pool, vcpu.flush_tlb, paging_notes(services), self.host.levels
        )
        self.paging = self.nested
        self._plans = DeliveryPlans(vcpu, services.memory)
        return vcpu

    def _instructions(self, services: Services) -> PrivilegedInstructions:
        cpu = self.cpu
        return KernelInstructions(
            self._controlled(), services.memory, services.msrs, self._debug, cpu.idt, cpu.gdt, cpu.ldt_segment
        )

    def _controlled(self) -> ControlledCpu:
        """The registers that privileged instructions change."""
        return self.vcpu

    def _wanted(self) -> set[int]:
        """Codes of the exits without which the guest would see or change what is not its own."""
        return {EXIT_CODES[name] for name in _MINIMUM} | set(_DEBUG_REGISTERS)

    def _write_control_area(self, intercepts: frozenset[int]) -> None:
        vmcb = self.vmcb
        for code in self._wanted() | intercepts:
            vmcb.set_intercept(code)
        ports, msrs = self._maps[0], self._maps[_PORTS_MAP_PAGES]
        for page in self._maps:
            self.memory.machine.view[page : page + PAGE_SIZE] = b"\xff" * PAGE_SIZE
        vmcb.write("IOPM_BASE_PA", ports)
        vmcb.write("MSRPM_BASE_PA", msrs)
        vmcb.write("GUEST_ASID", 1)
        self._write_paging_fields()

    def _write_paging_fields(self) -> None:
        self.vmcb.write("NP_ENABLE", 1)
        self.vmcb.write("N_CR3", self.nested.root)

    # ------------------------------------------------------------------ the ExecutionMode contract

    def enter(self, cpu: VirtualCpu) -> None:
        """Fill the VMCB from the guest's state, and execute VMRUN."""
        vcpu = self.vcpu
        vcpu.set_tables(cpu.gdtr, cpu.idtr, cpu.ldtr, cpu.tr)
        self._load_paging(cpu)
        vcpu.set_eflags(cpu.flags)
        for index, segment in enumerate(cpu.segments):
            vcpu.set_segment(index, segment)
        vcpu.set_cr2(cpu.cr2)
        vcpu.set_eip(cpu.instruction_pointer)
        self._load_msrs(cpu.msrs)
        self._enter_guest()
        self._load_rest(cpu)

    def _load_paging(self, cpu: VirtualCpu) -> None:
        """What the CPU's control registers are to be."""
        self.nested.reset()
        self.vcpu.load_control(cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer | EFER_SVME)
        if cpu.efer & EFER_NXE:
            self.vcpu.check_all_stores()

    def leave(self) -> VirtualCpu:
        """The guest's state, as #VMEXIT would store it; SVME is the hypervisor's."""
        cpu = super().leave()
        cpu.efer &= ~EFER_SVME
        return cpu

    def dirty_pages(self) -> set[int]:
        """Frames written since the last call, by write protection; all at the first."""
        return self.nested.start_dirty_log()

    def store_state(self) -> None:
        """Write the guest's registers and the last exit to the VMCB: the half of #VMEXIT that the engine leaves out."""
        code, first, second = self.last_exit
        self._save()
        for name, value in (("EXITCODE", code), ("EXITINFO1", first), ("EXITINFO2", second)):
            self.vmcb.write(name, value)

    def _save(self) -> None:
        values = self._msrs.present_values()
        msrs = {name: values.get(index, 0) for name, index in _MSR_FIELDS.items()}
        self.vmcb.save(self.vcpu, self.vcpu.paging(), msrs)
        # The guest's own are kept beside: MOV DR exits, and the hypervisor compares addresses
        self.vmcb.write("DR6", DR6_FIXED)
        self.vmcb.write("DR7", DR7_FIXED)

    def _enter_guest(self, vector: int | None = None) -> bool:
        """VMRUN with the state that the CPU holds; returns whether an interrupt of this vector was delivered."""
        vcpu, host = self.vcpu, self.host
        registers = vcpu.quads[:16].tolist()
        shadow = vcpu.interrupt_shadow()
        budget = self._counter.suspend() if self._counter else 0  # the host's instructions are none of the guest's
        self._save()
        if vector is not None:
            host.inject_interrupt(vector)
        host.run()
        if self._counter:
            self._counter.resume(budget)
        delivered = vector is not None and host.interrupted == vector
        if delivered:
            registers[ESP] = vcpu.quads[ESP]
        for index, value in enumerate(registers):
            vcpu.quads[index] = value
        vcpu.clear_exception()
        vcpu.set_interrupt_shadow(shadow and not delivered)
        return delivered

    def _efer(self) -> int:
        return super()._efer() & ~EFER_SVME

    def _set_efer(self, value: int) -> None:
        if value & EFER_NXE:
            self.vcpu.check_all_stores()
        paging = self.vcpu.paging()
        self.vcpu.load_control(paging.cr0, paging.cr3, paging.cr4, value | EFER_SVME)

    # ------------------------------------------------------------------ events

    def _deliver_event(self, event: Event) -> TripleFault | Unsupported | Escalated | None:
        if self._is_injected(event):
            return None
        return self._plans.deliver(event)

    def _is_injected(self, event: Event) -> bool:
        """Whether the CPU has delivered an external interrupt by itself."""
        return event.external and event.vector != NMI and not self._running and self._inject(event.vector)

    def _inject(self, vector: int) -> bool:
        """Have the CPU deliver an external interrupt by EVENTINJ, if all goes well; otherwise nothing has happened."""
        if not self._clock.installed or not self._may_inject(vector):
            return False
        vcpu = self.vcpu
        before = vcpu.save()
        for _ in range(_TRIES):
            if self._enter_guest(vector):
                return True
            vcpu.restore(before)
            vcpu.flush_tlb()
            if not self._help(self.host.interrupted, self.host.error_code):
                break
        return False

    def _help(self, vector: int | None, error: int) -> bool:
        """An injection has faulted: whether it was for want of something that the hypervisor has now provided."""
        return vector == EXIT_BASE + EXIT_NESTED_PAGE_FAULT and self._resolve(error, self.host.fault_address())

    def _may_inject(self, vector: int) -> bool:
        """Whether the engine is sure to survive the delivery: a present gate that is no task gate, and a sound TR.

        It ends the process for a TSS of another type, and knows no fault inside a task switch.
        """
        cpu = self.cpu
        tables, paging = cpu.system_tables(), cpu.paging()
        if not paging.cr0 & CR0_PE or tables.task_attributes & 0x9F00 not in _AVAILABLE_TASKS:
            return False
        size = 16 if paging.efer & EFER_LMA else 8
        if cpu.eflags() & FLAG_VM or vector * size + size - 1 > tables.idt_limit:
            return False
        try:
            gate = read_linear(self.memory, paging, tables.idt_base + vector * size, 8, mark=False)
        except LinearFault:
            return False
        return gate[5] & 0x9F in _GATES

    # ------------------------------------------------------------------ exits

    def _on_interrupt(self, vector: int) -> None:
        if self.host.is_entering:
            self.host.heard(vector)
            return
        if vector < EXIT_BASE:
            super()._on_interrupt(vector)
            return
        vcpu = self.vcpu
        if self._abandoned is not None:
            vcpu.stop()
            return
        if self.exit_seen is None:
            if vector != _CPUID_EXIT or not self._identify_at_once():
                self._handle(vector - EXIT_BASE)
        else:
            self._remember(vector - EXIT_BASE, vcpu.error_code())
            self.exit_seen(False)
            self._handle(vector - EXIT_BASE)
            self.exit_seen(True)

    def _remember(self, code: int, error: int) -> int:
        """Note the exit as the VMCB has it; returns the address of a page fault."""
        faulted = code in (EXIT_NESTED_PAGE_FAULT, EXIT_EXCEPTION + PAGE_FAULT)
        address = self.host.fault_address() if faulted else 0
        self.last_exit = code, error, address
        return address

    def _handle(self, code: int) -> None:
        vcpu = self.vcpu
        error = vcpu.error_code()
        vcpu.forget_exception()
        address = self._remember(code, error)
        if code in _EXCEPTIONS:
            self._intercepted_exception(code, error)
            return
        self._settle_block(complete=code == EXIT_NESTED_PAGE_FAULT and bool(error & ERROR_FETCH))
        if self._poker is None and self.position() >= self._until:  # as for exceptions: next time
            if self._counter:
                self._counter.take_back()
            self._stop_now()
        elif code == EXIT_NESTED_PAGE_FAULT:
            self._nested_fault(error, address)
        else:
            self._intercepted_instruction(code, error)

    def _note_exit(self, code: int) -> None:
        """Count an exit that an intercept asked for."""
        self._intercept_exits[code] += 1
        if self._tracer.active:
            self._tracer.publish(Exited(self.position(), ExitKind.INTERCEPT, self.vcpu.eip(), code, 0, 0))

    def _intercepted_exception(self, code: int, error: int) -> None:
        """An exception that exits: the guest gets it all the same, for the policy was only to look."""
        vector = code - EXIT_EXCEPTION
        if vector == PAGE_FAULT:
            self.vcpu.set_cr2(self.host.fault_address())
        if vector != DEBUG or not self._stepping_over:
            self._note_exit(code)
        super()._on_interrupt(vector)

    def _intercepted_instruction(self, code: int, error: int) -> None:
        instruction = self._detailed()
        if instruction is None:
            self._exception(Event(INVALID_OPCODE))
            return
        if code != EXIT_HLT:  # counted as a halt
            self._note_exit(code)
        if code == EXIT_SWINT:
            self._software_interrupt(instruction)
            return
        own = _OWN.get(instruction.mnemonic)
        if own is not None:
            own(self)
            self._done(instruction)
        elif instruction.mnemonic in _HIDDEN:
            self._exception(Event(INVALID_OPCODE))
        elif self._privileged.knows(instruction) and not (self.cpu.is_64_bit() and instruction.mnemonic in _OF_32_BITS):
            self._emulate_detailed(instruction, counted=False)
        else:
            self._lift(code)
            self._step_over(None, instruction)

    def _software_interrupt(self, instruction: Detailed) -> None:
        """INT n, INT3 or INTO, with the instruction pointer still at it."""
        vcpu, length = self.vcpu, len(instruction.code)
        start = vcpu.eip()
        vector = {"int3": BREAKPOINT, "into": OVERFLOW}.get(instruction.mnemonic)
        if vector is None:
            vector = instruction.operands[0].value & 0xFF
        vcpu.set_eip(start + length)
        self._charge(length)
        if self._deliver(AssistKind.SOFTWARE_INTERRUPT, Event(vector, None, True, False, None, start)):
            self._charge(-length)

    def _done(self, instruction: Detailed) -> None:
        """An instruction has been done here: go on after it."""
        vcpu, cpu = self.vcpu, self.cpu
        stepping = bool(cpu.eflags() & FLAG_TF)
        vcpu.set_eip(vcpu.eip() + len(instruction.code))
        cpu.set_interrupt_shadow(False)
        self._retired_by_us(len(instruction.code), stepping=stepping)

    def _identify(self) -> None:
        vcpu = self.vcpu
        values = self._cpuid.query(vcpu.gpr(EAX), vcpu.gpr(ECX))
        for index, value in zip((EAX, EBX, ECX, EDX), values, strict=True):
            vcpu.set_gpr(index, value)

    def _identify_at_once(self) -> bool:
        """The commonest intercept, where nothing else has to be thought of: what ``_handle`` does, without the calls.

        Returns False, with nothing done, in 64-bit code, near the end of a run, and where anybody counts or watches.
        """
        words, quads, cells = self._words, self._quads, self._cells
        eip = quads[layout.QUAD_EIP]
        linear = quads[_QUAD_CS_BASE] + eip
        tail = cells[ADDRESS] + cells[SIZE] - linear
        if (
            not 2 <= tail <= cells[SIZE]
            or self._slack
            or self._poker is not None
            or self._counter is not None
            or self._tracer.active
            or words[layout.WORD_HFLAGS] & layout.HFLAG_LMA
            or words[layout.WORD_EFLAGS] & FLAG_TF
            or self._retired + cells[LOADED] - cells[BUDGET] - cells[BIAS] - tail >= self._until
            or self._code(linear, 2) != _CPUID
        ):
            return False
        words[layout.WORD_OLD_EXCEPTION], words[layout.WORD_IS_SOFTWARE] = 0xFFFF_FFFF, 0
        self._disturbed = True
        cells[BUDGET] += tail - 2
        cells[SIZE] = 0
        self._intercept_exits[EXIT_CPUID] += 1
        self.last_exit = EXIT_CPUID, 0, 0
        quads[EAX], quads[EBX], quads[ECX], quads[EDX] = self._cpuid.query(words[2 * EAX], words[2 * ECX])
        quads[layout.QUAD_EIP] = eip + 2
        words[layout.WORD_HFLAGS] &= ~8 & 0xFFFF_FFFF  # the shadow of STI or MOV SS
        if self._attention or self._end is not None or (self._pin.level and words[layout.WORD_EFLAGS] & FLAG_IF):
            self._stop_now()
        return True

    def _read_clock(self) -> None:
        tsc = self._msrs.tsc()
        self.vcpu.set_gpr(EAX, tsc)
        self.vcpu.set_gpr(EDX, tsc >> 32)

    def _do_nothing(self) -> None:
        pass

    def _lift(self, code: int) -> None:
        """Let the CPU do the instruction that exited, once."""
        self._lifted = code
        self.vmcb.set_intercept(code, False)
        self.host.set_intercepts()

    def _end_step(self) -> None:
        if self._lifted is not None:
            self.vmcb.set_intercept(self._lifted)
            self.host.set_intercepts()
            self._lifted = None
        super()._end_step()

    # ------------------------------------------------------------------ nested paging

    def _resolve(self, error: int, address: int) -> bool:
        """Back a guest-physical address with its frame, or let it be written; False outside RAM."""
        if not self.nested.fault(address, write=bool(error & ERROR_WRITE)):
            return False
        self._exit(ExitKind.NESTED_FAULT, error)
        return True

    def _nested_fault(self, error: int, address: int) -> None:
        if self._resolve(error, address):
            self._watch_progress(Event(PAGE_FAULT, error, address=address))
            self._again(error)
        elif error & ERROR_FETCH:
            self._fetch_outside()
        else:
            self._access_outside(address)

    def _fetch_outside(self) -> None:
        """The CPU fetches where there is no RAM, or its way through the guest's tables leads there."""
        memory, cpu = self.memory, self.cpu
        found = walk(memory, cpu.paging(), cpu.linear_eip(), fetch=True, user=cpu.cpl() == 3)
        if isinstance(found, int):
            self._end = self._end or Stop(ExitStatus.GUEST_ENDED, self.sentence("there is no memory at this address"))
            self._stop_now()
        else:
            self._exception(Event(PAGE_FAULT, found.error_code, address=found.address))

    def _access_outside(self, address: int) -> None:
        """A load or store that does not go to RAM: to a device. The hypervisor decodes it, and does it."""
        instruction = self._detailed()
        access = device_access(self.cpu, instruction) if instruction is not None else None
        if instruction is None or access is None:
            self._step_over(self.nested.frame_of(address), instruction)
            return
        cpu = self.cpu
        linear, size = effective_address(cpu, instruction, access.memory), access.memory.size
        found = walk(self.memory, cpu.paging(), linear, write=access.value is not None, user=cpu.cpl() == 3)
        if not isinstance(found, int):
            self._exception(Event(PAGE_FAULT, found.error_code, address=found.address))
        elif found % size or size > 4 or self.nested.is_ram(found):
            self._step_over(self.nested.frame_of(address), instruction)  # the engine takes it apart as a bus would
        else:
            self._access_device(instruction, access, found)

    def _access_device(self, instruction: Detailed, access: DeviceAccess, address: int) -> None:
        size = access.memory.size
        if access.value is None:
            outcome = self._mmio_read(Mmio(address, size))
            loaded(self.cpu, access, outcome.value if type(outcome) is Retire else self._other(outcome))
        else:
            outcome = self._mmio_write(Mmio(address, size, access.value))
            if type(outcome) is not Retire:
                self._other(outcome)
        self._done(instruction)

    # ------------------------------------------------------------------ code

    def _forget_code_at(self, linear: int, size: int) -> None:
        """By machine address: the way there may lead through tables that are not backed at the moment."""
        paging = self.cpu.paging()
        mask = LINEAR_MASK if paging.efer & EFER_LMA else 0xFFFF_FFFF
        while size > 0:
            length = min(size, PAGE_SIZE - linear % PAGE_SIZE)
            physical = walk(self.memory, paging, linear & mask, mark=False)
            if isinstance(physical, int) and physical < self.memory.size:
                self.host.forget_code(self.memory.base + physical, length)
            linear, size = linear + length, size - length

    def _is_intercepted(self, mnemonic: str, operands: str) -> bool:
        return mnemonic in ("rdrand", "rdseed")

    def _wants(self, instruction: Instruction) -> bool:
        return True

    def _emulate(self, instruction: Instruction) -> None:
        """Do the instruction at EIP, which no VMCB can intercept, in place of the CPU."""
        if instruction.mnemonic not in ("iretd", "iret"):
            self._note(AssistKind.RANDOM, 0)
            self._exception(Event(INVALID_OPCODE))
            return
        detailed = self._detailed()
        assert detailed is not None
        result = self._privileged.execute(detailed)
        if isinstance(result, Event):
            self._exception(result)
        elif isinstance(result, Unsupported):
            self._end = self._end or Stop(ExitStatus.GUEST_ENDED, self.sentence(result.reason))
        else:
            self._retired += len(instruction.code)

    def _exception(self, event: Event) -> None:
        hypercall = self._hypercall() if event.vector == INVALID_OPCODE else None
        if hypercall is None:
            super()._exception(event)
        else:
            self._emulate_detailed(hypercall, counted=False)


_HIDDEN: Final = frozenset({"vmrun", "vmload", "vmsave", "stgi", "clgi", "skinit", "invlpga", "rdpmc"})
"""Instructions of a hypervisor, which the guest's CPU has not, and one that the engine has not."""
_OF_32_BITS: Final = frozenset("pushf popf pushfd popfd sgdt sidt sldt str smsw iretd iret".split())
"""Instructions that the emulator knows in 32-bit code alone."""
_OWN: Final[dict[str, Callable[[SvmMode], None]]] = {
    "cpuid": SvmMode._identify,
    "rdtsc": SvmMode._read_clock,
    "pause": SvmMode._do_nothing,
}
"""Instructions that only this mode takes from the CPU."""
