"""What an image promises and what it takes: facts for ``hvemu disk info``."""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from hvemu.devices.images.contract import SECTOR, Image
from hvemu.devices.images.opening import open_image
from hvemu.devices.images.vhd_dynamic import DynamicVhd
from hvemu.devices.images.vhd_fixed import FixedVhd


class ImageFacts(NamedTuple):
    """Of one image of a chain; sizes are bytes."""

    path: str
    format: str
    virtual_size: int
    allocated: int
    """What the format has given a place to, without its own tables; equal to the virtual size where there are none."""
    file_size: int
    stored: int
    """What the host has allocated to the file."""
    unique_id: str
    clean: bool
    """Whether nothing lies behind its last block but the footer; blocks given back or a kill leave space there."""
    read_only: bool


def describe(path: str, *, parents_in: Sequence[str] = (), force_share: bool = False) -> list[ImageFacts]:
    """The image and all that it builds on, the top first; raises UserError.

    One that is in use is refused, or with ``force_share`` read without a lock: the facts may be a moment old then.
    """
    top = open_image(path, read_only=True, parents_in=parents_in, force_share=force_share)
    try:
        return describe_open(top)
    finally:
        top.close()


def describe_open(top: Image) -> list[ImageFacts]:
    """The same of an image that somebody has open."""
    chain = [top]
    while isinstance(image := chain[-1], DynamicVhd) and image.parent is not None:
        chain.append(image.parent)
    return [_facts(image, read_only=index > 0) for index, image in enumerate(chain)]


def _facts(image: Image, *, read_only: bool) -> ImageFacts:
    file_size, unique_id, allocated, clean = image.file.size(), "", image.size, True
    if isinstance(image, DynamicVhd | FixedVhd):
        unique_id = str(uuid.UUID(bytes=image.footer.unique_id))
    if isinstance(image, DynamicVhd):
        allocated = image.allocated_blocks() * image.header.block_size
        clean = image.end + SECTOR == file_size
    return ImageFacts(
        image.file.name,
        image.format,
        image.size,
        allocated,
        file_size,
        image.file.stored(),
        unique_id,
        clean,
        read_only,
    )
