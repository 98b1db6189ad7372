"""The storage of a board: host bus adapters for the drives that a configuration names, and nothing for those it does
not. Called by the board.
"""

from collections.abc import Callable, Sequence

from hvemu.devices.ata_device import AtaDevice
from hvemu.devices.ata_disk import AtaDisk
from hvemu.devices.atapi import AtapiCdrom
from hvemu.devices.contract import Clock, Device, GuestMemory, IrqLine, Watcher
from hvemu.devices.ide import IdeChannel
from hvemu.devices.pci import PciHost
from hvemu.devices.pci_chipset import IdeFunction
from hvemu.devices.scsi.bus import ScsiBus, Target
from hvemu.devices.scsi.buslogic import BusLogic, BusLogicFunction
from hvemu.devices.scsi.cdrom import ScsiCdrom
from hvemu.devices.scsi.disk import ScsiDisk
from hvemu.devices.scsi.medium import MediumUnit
from hvemu.devices.scsi.virtio_scsi import CLASS_CODE, DEVICE_ID, SUBSYSTEM, VirtioScsi
from hvemu.devices.virtio_pci import VirtioPci, VirtioPciFunction
from hvemu.machine.drives import AttachedDrive
from hvemu.vocabulary import machine_map as at

_BUSLOGIC_IDENTIFIER = 7
"""The adapter's own place on its bus."""


class Storage:
    """What hangs on the board for its drives. A BIOS offers its ``disks`` and ``cdroms``."""

    def __init__(
        self,
        drives: Sequence[AttachedDrive],
        *,
        clock: Clock,
        memory: GuestMemory,
        line: Callable[[int], IrqLine],
        pci: PciHost,
        watcher: Watcher,
    ) -> None:
        self.disks = [each.medium for each in drives if not each.drive.cdrom]
        self.cdroms = [each.medium for each in drives if each.drive.cdrom]
        self.buses: dict[str, ScsiBus] = {}
        self.windows: list[tuple[int, int, Device]] = []
        """Ports of adapters that are not where PCI puts them: base, length and device."""
        by_adapter = {
            adapter: [each for each in drives if each.drive.adapter == adapter]
            for adapter in {each.drive.adapter for each in drives}
        }
        if "pv" in by_adapter:
            self._bus("pv", by_adapter["pv"])
        if "ide" in by_adapter:
            places = [_ide_drive(each) for each in by_adapter["ide"]] + [None] * 4
            for drives_of, base, control, irq in (
                (places[0:2], at.IDE_PRIMARY, at.IDE_PRIMARY_CONTROL, at.IRQ_IDE_PRIMARY),
                (places[2:4], at.IDE_SECONDARY, at.IDE_SECONDARY_CONTROL, at.IRQ_IDE_SECONDARY),
            ):
                channel = IdeChannel(drives_of, clock=clock, irq=line(irq), watcher=watcher)
                self.windows += [(base, 8, channel.command), (control, 1, channel.control)]
            pci.add(*at.PCI_IDE, IdeFunction())
        if "buslogic" in by_adapter:
            bus = self._bus("buslogic", by_adapter["buslogic"], without=_BUSLOGIC_IDENTIFIER)
            buslogic = BusLogic(bus, memory=memory, clock=clock, irq=line(at.IRQ_BUSLOGIC), watcher=watcher)
            pci.add(at.PCI_BUSLOGIC, 0, BusLogicFunction(buslogic))
        if "virtio-scsi" in by_adapter:
            adapter = VirtioScsi(self._bus("virtio-scsi", by_adapter["virtio-scsi"]), memory)
            virtio = VirtioPci(adapter, memory=memory, clock=clock, irq=line(at.IRQ_VIRTIO), watcher=watcher)
            function = VirtioPciFunction(virtio, device_id=DEVICE_ID, subsystem=SUBSYSTEM, class_code=CLASS_CODE)
            pci.add(at.PCI_VIRTIO, 0, function)

    def _bus(self, adapter: str, drives: Sequence[AttachedDrive], without: int = -1) -> ScsiBus:
        """A target for each drive, with the drive as its unit 0."""
        places = (number for number in range(256) if number != without)
        bus = ScsiBus({place: Target({0: unit(each)}) for place, each in zip(places, drives, strict=False)})
        self.buses[adapter] = bus
        return bus

    def power_on(self) -> None:
        """Every unit tells its initiators that it was switched on."""
        for bus in self.buses.values():
            for target in bus.targets.values():
                target.reset("power on")


def _ide_drive(attached: AttachedDrive) -> AtaDevice:
    """A drive with its own commands, or a CD-ROM that takes those of SCSI in packets."""
    if attached.drive.cdrom:
        return AtapiCdrom(ScsiCdrom(attached.medium, serial=attached.serial))
    return AtaDisk(attached.medium, serial=attached.serial)


def unit(attached: AttachedDrive) -> MediumUnit:
    """The SCSI unit of a drive."""
    if attached.drive.cdrom:
        return ScsiCdrom(attached.medium, serial=attached.serial)
    return ScsiDisk(attached.medium, serial=attached.serial)
