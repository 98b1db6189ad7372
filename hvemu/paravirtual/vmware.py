"""VMware's backdoor: a port whose IN means a call, with a command in CX and answers in all registers.

Document: Linux, arch/x86/kernel/cpu/vmware.c.
"""

from hvemu.cpu.hypervisor_leaves import TSC_HZ
from hvemu.cpu.state import EAX, EBX, ECX, CpuPort
from hvemu.vocabulary import vmware
from hvemu.vocabulary.machine_map import LAPIC_BUS_HZ


def backdoor(cpu: CpuPort) -> int:
    """IN EAX from the port: does the command and returns what EAX reads; an unknown one leaves all as it is."""
    accumulator, command = cpu.gpr(EAX), cpu.gpr(ECX) & 0xFFFF
    if accumulator != vmware.MAGIC:
        return accumulator
    if command == vmware.GET_VERSION:
        cpu.set_gpr(EBX, vmware.MAGIC)
        cpu.set_gpr(ECX, vmware.SERVER_PRODUCT)
        return vmware.INTERFACE_VERSION
    if command == vmware.GET_HZ:
        cpu.set_gpr(EBX, TSC_HZ >> 32)
        cpu.set_gpr(ECX, LAPIC_BUS_HZ)
        return TSC_HZ & 0xFFFF_FFFF
    return accumulator
