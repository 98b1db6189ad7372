"""Build a machine from its configuration: read this top to bottom to see how everything hangs together."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from hvemu.cpu.cpuid import CpuId
from hvemu.cpu.hypervisor_leaves import HYPERVISOR_LEAVES
from hvemu.cpu.msr import ModelSpecificRegisters
from hvemu.cpu.state import VirtualCpu
from hvemu.devices.bus import Bus
from hvemu.devices.contract import DeviceEvent
from hvemu.devices.eoi_flag import EoiFlag
from hvemu.dispatch.dispatcher import Dispatcher
from hvemu.engine.cpuid_leaves import read_cpuid_leaves
from hvemu.engine.vcpu import Vcpu
from hvemu.loader import firmware, select
from hvemu.loader.bios import Bios
from hvemu.loader.contract import BootDevice, BootRequest, read_file
from hvemu.loader.el_torito import is_cdrom
from hvemu.loader.xen_guest import LONGEST_COMMAND_LINE
from hvemu.machine.board import NOWHERE, Backends, Board
from hvemu.machine.clock import NANOSECONDS_PER_BYTE, HostClock, VirtualClock
from hvemu.machine.configuration import MMUS, MODES, MachineConfiguration
from hvemu.machine.drives import Drive, Media, boot_devices, check_drives, own_adapter
from hvemu.machine.interrupts import LocalApicPriority
from hvemu.machine.machine import Machine
from hvemu.memory.guest_memory import GuestPhysicalMemory
from hvemu.memory.machine_memory import MachineMemory
from hvemu.memory.shadow import ShadowPolicy
from hvemu.modes.binary_translation import BinaryTranslation
from hvemu.modes.direct_execution import DirectExecution
from hvemu.modes.handing_over import HandingOver
from hvemu.modes.native import NativeMode
from hvemu.modes.paravirtual import ParavirtualMode
from hvemu.modes.stretches import Services
from hvemu.modes.svm import SvmMode
from hvemu.modes.svm_shadow import SvmShadowMode
from hvemu.modes.trap import TrapMode
from hvemu.paravirtual.domain import DomainServices
from hvemu.paravirtual.hyperv import HyperV
from hvemu.paravirtual.kvm import Kvm
from hvemu.paravirtual.vmware import backdoor
from hvemu.trace.events import DeviceSpoke, Exited, TechniqueChanged
from hvemu.trace.ledger import Ledger
from hvemu.trace.tracer import Tracer
from hvemu.vocabulary.addresses import PAGE_SHIFT
from hvemu.vocabulary.errors import ExitStatus, UserError
from hvemu.vocabulary.exits import ExitKind, Io, Mmio
from hvemu.vocabulary.outcomes import POWERED_OFF, RETIRED, Outcome, Retire, Stop
from hvemu.vocabulary.paging import EFER_LME
from hvemu.vocabulary.svm import exit_code

VMM_MEMORY: Final = 16 << 20
"""Machine memory below the guest's, for the own pages of each technique that has any."""
_WITH_PAGES: Final = ("shadow", "nested", "nested-2", "svm/shadow")
"""Those for a guest that takes the machine for a PC; they keep their pages while another one runs."""
FULL_MODES: Final = ("native", "bt", "svm")
"""Modes that any 32-bit guest can be switched to."""
_SHADOW: Final = {
    "cached": ShadowPolicy(),
    "flush": ShadowPolicy(keep=False),
    "trace": ShadowPolicy(unsync=False),
    "simple": ShadowPolicy(keep=False, unsync=False),
}


def _trap(services: Services, configuration: MachineConfiguration) -> TrapMode:
    return TrapMode(services, _SHADOW[configuration.shadow], audit=configuration.audit)


def _bt(services: Services, configuration: MachineConfiguration) -> HandingOver:
    def start() -> NativeMode:
        return NativeMode(replace(services, vcpu=Vcpu(configuration.cpu)))

    return HandingOver(BinaryTranslation(services, _SHADOW[configuration.shadow]), start)


def _svm(services: Services, configuration: MachineConfiguration) -> SvmMode:
    intercepts = frozenset(exit_code(name) for name in configuration.intercept)
    if configuration.mmu == "shadow":
        return SvmShadowMode(services, intercepts, _SHADOW[configuration.shadow])
    return SvmMode(services, intercepts, levels=2 if configuration.mmu == "nested-2" else 4)


def _frames_of(configuration: MachineConfiguration) -> range:
    """The machine frames in which a technique has its pages."""
    name = "svm/shadow" if (configuration.mode, configuration.mmu) == ("svm", "shadow") else configuration.mmu
    first = (_WITH_PAGES.index(name) if name in _WITH_PAGES else 0) * VMM_MEMORY >> PAGE_SHIFT
    return range(max(first, 1), first + (VMM_MEMORY >> PAGE_SHIFT))  # nothing of ours is at 0


_TECHNIQUES: Final[dict[str, Callable[[Services, MachineConfiguration], DirectExecution | HandingOver]]] = {
    "native": lambda services, _: NativeMode(services),
    "trap": _trap,
    "bt": _bt,
    "svm": _svm,
}
"""Those for guests that take the machine for a PC."""
_FULL_MODES_HINT: Final = "Choose native, bt, svm, svm/nested-2 or svm/shadow."


def read_images(configuration: MachineConfiguration, media: Media | None = None) -> tuple[BootRequest, str]:
    """Read what the configuration names and choose the loader; raises UserError. Disks are in ``media``."""
    if not configuration.image and media is not None:
        if configuration.mode == "pv":
            raise UserError("There is nothing to boot. A paravirtual guest is not booted from a disk", "Give an IMAGE.")
        bootable = boot_devices(media.drives, configuration.boot_order)
        if media.drives and not bootable:
            hint = "Write c for hard disks and d for CD-ROMs, or leave out -boot."
            raise UserError(f"No drive is of a kind that -boot {configuration.boot_order} names", hint)
        return BootRequest(b"", "", devices=bootable), "disk"
    image = read_file(configuration.image, "image")
    name = Path(configuration.image).name
    loader = configuration.loader if configuration.loader != "auto" else select.detect(image, name)
    devices: tuple[BootDevice, ...] = ()
    if loader == "disk" and media is not None:
        drive = Drive(configuration.image, own_adapter(configuration.mode), cdrom=is_cdrom(image))
        own = media.attach_memory(image, drive, first=True)
        devices = tuple(each for each in boot_devices(media.drives) if each.medium is own.medium)
    modules = []
    for text in configuration.modules:
        path = text.split(maxsplit=1)[0] if text.strip() else text
        modules.append((text, read_file(path, "module")))
    request = BootRequest(
        image=image,
        image_name=name,
        append=configuration.append,
        initrd=read_file(configuration.initrd, "initrd") if configuration.initrd else b"",
        modules=tuple(modules),
        load_address=configuration.load_address,
        devices=devices,
    )
    return request, loader


def _check_technique(configuration: MachineConfiguration, loader: str, request: BootRequest) -> None:
    """64-bit kernels need long mode; mode ``pv`` and paravirtual kernels belong together; raises UserError."""
    name, told = request.image_name, configuration.loader != "auto"
    if select.is_64_bit(request.image) and not configuration.runs_long_mode:
        what = f"{name} is a 64-bit kernel, which mode {configuration.mode}"
        if len(MMUS[configuration.mode]) > 1:
            raise UserError(f"{what} with {configuration.mmu} page tables cannot run", "Use --mmu nested.")
        raise UserError(f"{what} cannot run", "Use --mode native or svm.")
    if loader == "xen" and configuration.mode != "pv":
        hint = "Leave --loader out, or use --mode pv." if told else "Use --mode pv."
        raise UserError(f"{name} is {'to be loaded as ' if told else ''}a paravirtual kernel", hint)
    if configuration.mode != "pv":
        return
    if loader != "xen":
        what = f"--loader {loader} is not for paravirtual kernels" if told else f"{name} is not a paravirtual kernel"
        raise UserError(
            f"Mode pv cannot run it: {what}", "Leave --loader out." if told else "Use --mode native, bt or svm."
        )
    if configuration.modules:
        raise UserError("A paravirtual kernel has no modules", "Give it one file with --initrd.")
    if len(configuration.append.encode()) > LONGEST_COMMAND_LINE:
        raise UserError(f"A paravirtual kernel's command line ends after {LONGEST_COMMAND_LINE} bytes", "Shorten it.")
    if configuration.display == "text":
        raise UserError("A paravirtual guest has no screen", "Leave out --display: its console is --serial.")
    if "pae" in configuration.cpu_without:
        raise UserError("Mode pv needs a CPU with PAE", "Leave -pae out of --cpu.")


def _switched(configuration: MachineConfiguration, mode: str, mmu: str) -> MachineConfiguration:
    """The configuration with another technique; raises UserError where there is no way from the one to the other."""
    if mode not in MODES:
        raise UserError(f"There is no mode '{mode}'", _FULL_MODES_HINT)
    for name in (configuration.mode, mode):
        if name not in FULL_MODES:
            raise UserError(f"A running guest cannot be switched between '{name}' and others", _FULL_MODES_HINT)
    if mmu and mmu not in MMUS[mode]:
        raise UserError(f"Mode {mode} has no paging technique '{mmu}'", _FULL_MODES_HINT)
    kept = "shadow" in (mmu or MMUS[mode][0])
    return replace(
        configuration,
        mode=mode,
        mmu=mmu,
        shadow=configuration.shadow if kept else "cached",
        intercept=configuration.intercept if mode == "svm" else (),
    )


def _check_guest(cpu: VirtualCpu, wanted: MachineConfiguration) -> None:
    """64-bit code has to stay where it can run; raises UserError."""
    if cpu.efer & EFER_LME and not wanted.runs_long_mode:
        raise UserError("The guest is in long mode, for which there are no shadow page tables", "Use native or svm.")


def build(
    configuration: MachineConfiguration, *, backends: Backends = NOWHERE, tracer: Tracer | None = None
) -> Machine:
    """A machine at its first instruction. Raises UserError when the image or the configuration is impossible."""
    media = Media()
    try:
        for drive in check_drives(configuration.disks, configuration.mode):
            media.attach(drive, parents_in=configuration.parents_in)
        if configuration.scratch_disk:
            media.attach_memory(bytes(configuration.scratch_disk), Drive("", own_adapter(configuration.mode)))
        return _build(configuration, media, backends, tracer)
    except BaseException:
        media.close()
        raise


def _build(configuration: MachineConfiguration, media: Media, backends: Backends, tracer: Tracer | None) -> Machine:
    request, loader = read_images(configuration, media)
    _check_technique(configuration, loader, request)
    tracer = tracer or Tracer()
    ledger = Ledger()

    # The physical machine: memory and CPU. A paravirtual guest knows machine addresses, all others their own.
    paravirtual = configuration.mode == "pv"
    own = VMM_MEMORY if paravirtual else VMM_MEMORY * len(_WITH_PAGES)
    memory = GuestPhysicalMemory(MachineMemory(own + configuration.memory), 0 if paravirtual else own)
    vcpu = Vcpu(configuration.cpu)
    shown = configuration.hypervisor_leaves
    cpuid = CpuId(
        read_cpuid_leaves(vcpu), without=frozenset(configuration.cpu_without), hypervisor=HYPERVISOR_LEAVES[shown]
    )
    if select.is_64_bit(request.image) and not cpuid.has("lm"):
        what = f"{request.image_name} is a 64-bit kernel, and the CPU has no long mode"
        raise UserError(what, "Use --cpu with another model and without -lm, as in --cpu opteron-g3.")
    clock = HostClock() if configuration.clock == "host" else VirtualClock()
    dispatcher = Dispatcher(ledger, tracer)
    interface: Kvm | HyperV | None = None
    if shown == "kvm":
        interface = Kvm(memory, clock, configuration.rtc, lambda control: board.lapic.set_eoi_flag(control))
        dispatcher.register(ExitKind.VMCALL, interface.answer)
        interface.enter = dispatcher.entry(ExitKind.VMCALL)
    elif shown == "hyperv":
        interface = HyperV(memory, clock)
        dispatcher.register(ExitKind.HYPERV_CALL, interface.answer)
        interface.enter = dispatcher.entry(ExitKind.HYPERV_CALL)
    msrs = ModelSpecificRegisters(
        clock.now,
        no_execute=cpuid.has("nx"),
        long_mode=cpuid.has("lm"),
        apic_enable=lambda enabled: board.lapic.set_enabled_globally(enabled),
        synthetic=interface,
    )

    # The board: chips on two buses
    def unclaimed(kind: ExitKind, address: int, size: int, value: int | None) -> None:
        ledger.counter(kind)[address] += 1
        if tracer.active:
            tracer.publish(Exited(mode.position(), kind, dispatcher.where()[0], address, size, value or 0))
        if configuration.strict:
            what = f"{'read of' if value is None else 'write to'} unclaimed"
            space = "port" if kind is ExitKind.UNCLAIMED_IO else "address"
            mode.stop_soon(Stop(ExitStatus.GUEST_ENDED, mode.sentence(f"{what} {space} {address:#x} under --strict")))

    ports = Bus(
        "port", on_unclaimed=lambda address, size, value: unclaimed(ExitKind.UNCLAIMED_IO, address, size, value)
    )
    mmio = Bus(
        "memory", on_unclaimed=lambda address, size, value: unclaimed(ExitKind.UNCLAIMED_MMIO, address, size, value)
    )

    def watch(event: DeviceEvent) -> None:
        if tracer.active:
            tracer.publish(DeviceSpoke(mode.position(), *event))

    def debug_exit(code: int) -> None:
        status = (code << 1 | 1) & 0xFF
        mode.stop_soon(Stop(status, f"the guest wrote {code:#x} to the debug exit port"))

    def bios_call() -> None:
        bios.cpu = mode.vcpu
        bios.call()

    board = Board(
        configuration,
        clock,
        ports,
        mmio,
        backends,
        media.drives,
        memory,
        watcher=watch,
        power_off=lambda: mode.stop_soon(POWERED_OFF),
        debug_exit=debug_exit,
        bios_call=bios_call,
        attend=lambda: mode.attend(urgent=True),
        eoi_flag=EoiFlag(memory),
        backdoor=(lambda: backdoor(mode.cpu)) if shown == "vmware" else None,
    )

    # Exits: kind -> handler
    def port_in(access: Io) -> Outcome:
        return Retire(ports.read(access.port, access.size))

    def port_out(access: Io) -> Outcome:
        ports.write(access.port, access.size, access.value)
        return RETIRED

    def mmio_read(access: Mmio) -> Outcome:
        return Retire(mmio.read(access.address, access.size))

    def mmio_write(access: Mmio) -> Outcome:
        mmio.write(access.address, access.size, access.value)
        return RETIRED

    dispatcher.register(ExitKind.IO_IN, port_in)
    dispatcher.register(ExitKind.IO_OUT, port_out)
    dispatcher.register(ExitKind.MMIO_READ, mmio_read)
    dispatcher.register(ExitKind.MMIO_WRITE, mmio_write)
    if paravirtual:
        dispatcher.register(
            ExitKind.HYPERCALL, lambda call: Retire(domain_mode.domain.hypercalls.call(call.number, call.arguments))
        )

    # The technique
    if paravirtual:
        board.use_events(lambda data: domain_mode.domain.receive(data), quiesce=lambda: domain_mode.domain.quiesce())
    services = Services(
        vcpu,
        memory,
        dispatcher,
        ledger,
        tracer,
        cpuid,
        msrs,
        board.interrupt,
        count_instructions=configuration.count_instructions,
        tsc_scale=NANOSECONDS_PER_BYTE,
        host_time=clock.host_position if isinstance(clock, HostClock) else None,
        hypercall=interface.call if interface else None,
        task_priority=LocalApicPriority(board.lapic),
    )
    mode: DirectExecution | HandingOver

    def start(given: Services, wanted: MachineConfiguration) -> DirectExecution | HandingOver:
        return _TECHNIQUES[wanted.mode](replace(given, frames=_frames_of(wanted)), wanted)

    if paravirtual:
        frames = range(VMM_MEMORY >> PAGE_SHIFT, memory.size >> PAGE_SHIFT)
        host = DomainServices(
            clock,
            backends.serial,
            backends.debug_console,
            configuration.name,
            configuration.rtc,
            power_off=lambda: mode.stop_soon(POWERED_OFF),
            reboot=board.request_reset,
            drives=board.storage.buses.get("pv"),
        )
        mode = domain_mode = ParavirtualMode(services, host, frames)
    else:
        mode = start(services, configuration)

    def attach() -> None:
        clock.position = mode.position
        clock.shorten = mode.shorten
        board.interrupt.attend = mode.attend
        board.nmi.attend = lambda: mode.attend(urgent=True)

    attach()
    bios = Bios(memory, vcpu, ports.read, ports.write, board.storage.disks, board.storage.cdroms)

    def boot_pc() -> VirtualCpu:
        memory.clear()
        firmware.install(memory)
        return select.LOADERS[loader](memory, request)

    def boot_domain() -> VirtualCpu:
        memory.machine.clear(VMM_MEMORY, configuration.memory)
        return domain_mode.build(request)

    def power_on() -> None:
        board.power_on()
        cpu = boot_domain() if paravirtual else boot_pc()
        cpu.msrs = msrs.reset_values()
        mode.enter(cpu)

    known = {(configuration.mode, configuration.mmu): mode}

    def switch_mode(name: str, mmu: str) -> None:
        nonlocal mode
        if "/" in name and not mmu:
            name, _, mmu = name.partition("/")
        wanted = _switched(machine.configuration, name, mmu)
        cpu = mode.leave()
        _check_guest(cpu, wanted)
        key = wanted.mode, wanted.mmu
        if key not in known:
            known[key] = start(replace(services, vcpu=Vcpu(configuration.cpu)), wanted)
        before, mode = mode, known[key]
        mode.connect()
        mode.enter(cpu)
        if mode is not before:
            mode.take_over_from(before.current if isinstance(before, HandingOver) else before)
            mode.warn, mode.breakpoints = before.warn, before.breakpoints
        attach()
        machine.mode, machine.configuration = mode, wanted
        if tracer.active:
            tracer.publish(TechniqueChanged(mode.position(), wanted.mode, wanted.mmu))

    machine = Machine(
        configuration=replace(configuration, loader=loader),
        memory=memory,
        clock=clock,
        board=board,
        ports=ports,
        mmio=mmio,
        mode=mode,
        cpuid=cpuid,
        ledger=ledger,
        tracer=tracer,
        media=media,
        is_64_bit_kernel=select.is_64_bit(request.image),
        reset=power_on,
        switch=switch_mode,
        balloon=domain_mode.domain if paravirtual else None,
        channels=domain_mode.domain.events.lines if paravirtual else None,
    )
    power_on()
    return machine
