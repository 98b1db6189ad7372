"""Disk images: raw files and virtual hard disks (VHD), alone and in chains of snapshots. docs/disks.md tells more."""

from hvemu.devices.images.contract import Image
from hvemu.devices.images.opening import open_image

__all__ = ["Image", "open_image"]
