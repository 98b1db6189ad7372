"""Unmodified kernels from Debian's packages boot and work: memtest86+ and Linux for 686."""

import hashlib
import re

import pytest

from hvemu.devices.contract import NoBackend
from hvemu.machine.board import Backends
from hvemu.machine.builder import build
from hvemu.machine.configuration import MachineConfiguration
from hvemu.testing.running import Recording, run_guest
from hvemu.vocabulary.machine_map import LAPIC_BASE
from tests.guests.packages import initramfs, kernel_package, one_file

pytestmark = pytest.mark.slow

MEMTEST_LIMIT = 12_000_000_000
LINUX_LIMIT = 30_000_000_000
INIT = b"""#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox uname -sm
echo "sum $(busybox expr 6000 \\* 7)"
busybox sha256sum /bin/busybox
busybox grep -c . /proc/interrupts
busybox cat /proc/interrupts
echo user programs are done
busybox reboot -f
"""


@pytest.mark.parametrize(("megabytes", "mode"), [(64, "native"), (256, "native"), (64, "bt")])
def test_memtest86_tests_memory_without_an_error(megabytes, mode):
    """It shows the right memory size, gets through its first tests, and says so on the screen and on the serial line."""
    recording = Recording()
    image = one_file("memtest86+", "boot/*ia32.bin")
    configuration = MachineConfiguration(
        image=str(image), memory=megabytes << 20, append="console=ttyS0", serial="none", mode=mode
    )
    machine = build(configuration, backends=Backends(recording, NoBackend(), NoBackend()))
    tests = set()
    while machine.mode.position() < MEMTEST_LIMIT * megabytes // 64 and len(tests) < 3:
        assert None is machine.run(machine.mode.position() + 20_000_000)
        screen = machine.screen()
        text = "\n".join(screen)
        tests |= set(re.findall(r"Test #(\d+)", text))
    assert len(tests) >= 3, text
    assert f"{megabytes}MB" in next(row for row in screen if row.startswith("Memory"))
    assert "Status: Testing" in text
    assert "Errors: 0 " in text
    serial = recording.text()
    for words in ("Memtest86+ v", f"{megabytes}MB", "Testing", "Errors: 0"):
        assert words in serial


def test_linux_in_mode_trap_is_fooled_and_told_by_what():
    """An ordinary kernel saves IF by PUSHF, which lies at ring 1; the sentence names the instruction."""
    kernel = one_file(kernel_package(), "boot/vmlinuz-*")
    command_line = "console=ttyS0 noapic nolapic acpi=off pci=off panic=-1"
    configuration = MachineConfiguration(
        image=str(kernel), memory=128 << 20, append=command_line, serial="none", mode="trap", audit=True
    )
    result = run_guest(configuration)
    assert result.stop is not None
    assert 0 != result.status
    assert re.search(r"fooled it in \d+ places, last at EIP 0xc[0-9a-f]{7} 'pushfd' pushes IF=1", result.stop.reason)


def boot_linux(command_line, mode, **changes):
    """Boot Debian's kernel with an initramfs made of busybox; returns the result."""
    kernel = one_file(kernel_package(), "boot/vmlinuz-*")
    busybox = one_file("busybox-static:i386", "bin/busybox").read_bytes()
    archive = initramfs(
        [
            ("bin", 0o40755, b"", (0, 0)),
            ("dev", 0o40755, b"", (0, 0)),
            ("proc", 0o40755, b"", (0, 0)),
            ("dev/console", 0o20600, b"", (5, 1)),
            ("bin/busybox", 0o100755, busybox, (0, 0)),
            ("init", 0o100755, INIT, (0, 0)),
        ]
    )
    path = kernel.parent / "initramfs-hvemu"
    path.write_bytes(archive)
    configuration = MachineConfiguration(
        image=str(kernel), initrd=str(path), memory=128 << 20, append=command_line, serial="none", mode=mode, **changes
    )
    return run_guest(configuration, position=LINUX_LIMIT), hashlib.sha256(busybox).hexdigest()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("command_line", "controller", "mode"),
    [
        ("console=ttyS0 panic=-1 noapic nolapic acpi=off pci=off", "XT-PIC", "native"),
        ("console=ttyS0 panic=-1", "IO-APIC", "native"),
        ("console=ttyS0 panic=-1 noapic nolapic acpi=off pci=off", "XT-PIC", "bt"),
    ],
    ids=["minimal-pc", "apic-acpi-pci", "translated"],
)
def test_debian_kernel_boots_to_user_programs_and_reboots(command_line, controller, mode):
    """uname, a sum and a checksum are right, interrupts come the way the command line says, and reboot is clean."""
    result, checksum = boot_linux(command_line, mode)
    console = result.console
    assert "Linux i686" in console, console[-3000:]
    assert "sum 42000" in console
    assert checksum in console
    assert controller in console
    assert "user programs are done" in console
    assert "Kernel panic" not in console
    assert "unchecked MSR access" not in console
    assert 0 == result.status, console[-2000:]
    assert "reset" in result.stop.reason
    if controller == "IO-APIC":
        assert "ACPI: Interpreter enabled" in console
        assert "PCI: Using configuration type 1" in console


def test_grub_for_xen_boots_and_obeys_in_mode_pv():
    """A paravirtual kernel that was made for Xen itself: its own page tables, its console, its store, its power-off."""
    image = one_file("grub-xen-host", "usr/lib/grub-xen/grub-i386-xen.bin")
    recording = Recording()
    machine = build(
        MachineConfiguration(image=str(image), memory=64 << 20, mode="pv", serial="none"),
        backends=Backends(recording, NoBackend(), NoBackend()),
    )
    recording.when("grub>", lambda: machine.send_serial(b"echo this is $grub_platform on $grub_cpu\r"))
    while "this is xen on i386" not in recording.text():
        assert machine.run(machine.mode.position() + 20_000_000) is None
        assert machine.mode.position() < LINUX_LIMIT
    machine.send_serial(b"halt\r")
    stop = machine.run(LINUX_LIMIT)
    assert stop is not None
    assert (0, "the guest powered off") == (stop.status, stop.reason)
    calls = machine.statistics()["exits_by_detail"]["hypercall"]
    assert {"mmu_update", "mmuext_op", "update_va_mapping", "event_channel_op", "sched_op"} <= set(calls)


@pytest.mark.timeout(1500)
def test_debian_kernel_uses_what_kvm_offers():
    """It takes the clock, ends interrupts in memory instead of by the local APIC's register, and works."""
    result, checksum = boot_linux("console=ttyS0 panic=-1", "native", hypervisor_leaves="kvm")
    console = result.console
    for words in (
        "Hypervisor detected: KVM",
        "kvm-clock: Using msrs 4b564d01 and 4b564d00",
        "clocksource: Switched to clocksource kvm-clock",
        "Booting paravirtualized kernel on KVM",
        checksum,
        "user programs are done",
    ):
        assert words in console, console[-3000:]
    assert "unchecked MSR access" not in console
    ticks = int(re.search(r"LOC: +(\d+)", console)[1])
    assert ticks > 1000
    assert result.statistics["exits_by_detail"]["mmio_write"][f"{LAPIC_BASE + 0xB0:#x}"] < ticks // 100
    assert 0 == result.status
