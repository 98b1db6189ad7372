"""The engine with nothing around it: the yardstick that benchmarks measure hvemu against."""

import time

from hvemu.cpu.state import VirtualCpu
from hvemu.engine.vcpu import Vcpu
from hvemu.memory.guest_memory import GuestPhysicalMemory


def run_bare(memory: GuestPhysicalMemory, cpu: VirtualCpu, model: str, stop_port: int) -> tuple[float, bytes]:
    """Run a loaded guest until it writes to ``stop_port``; returns processor seconds and its other output."""
    vcpu = Vcpu(model)
    vcpu.map_ram(0, memory.size, memory.machine.host_address)
    load_registers(vcpu, cpu)
    written = bytearray()

    def out(port: int, _size: int, value: int) -> None:
        if port == stop_port:
            vcpu.stop()
        else:
            written.append(value & 0xFF)

    vcpu.on_port_out(out)
    vcpu.on_port_in(lambda _port, _size: 0x60)
    started = time.process_time()
    vcpu.run()
    return time.process_time() - started, bytes(written)


def load_registers(vcpu: Vcpu, cpu: VirtualCpu) -> None:
    """The start state of a 32-bit guest, without what only a whole machine has."""
    vcpu.set_tables(cpu.gdtr, cpu.idtr, cpu.ldtr, cpu.tr)
    for index, value in enumerate(cpu.gprs):
        vcpu.set_gpr(index, value)
    vcpu.set_eflags(cpu.flags)
    vcpu.load_control(cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer)
    for index, segment in enumerate(cpu.segments):
        vcpu.set_segment(index, segment)
    vcpu.set_eip(cpu.instruction_pointer)


def bare_hook_seconds(count: int = 200_000) -> float:
    """Processor seconds of one OUT handled by a Python hook of Unicorn's own binding that does nothing."""
    from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_32, Uc
    from unicorn.x86_const import UC_X86_INS_OUT, UC_X86_REG_ECX

    uc = Uc(UC_ARCH_X86, UC_MODE_32)
    uc.mem_map(0x1000, 0x1000)
    code = bytes.fromhex("e680 49 75fb f4")  # again: out 80h, al / dec ecx / jnz again / hlt
    uc.mem_write(0x1000, code)
    uc.hook_add(UC_HOOK_INSN, lambda *_: None, None, 1, 0, UC_X86_INS_OUT)
    uc.reg_write(UC_X86_REG_ECX, count)
    started = time.process_time()
    uc.emu_start(0x1000, 0x1000 + len(code))
    return (time.process_time() - started) / count
