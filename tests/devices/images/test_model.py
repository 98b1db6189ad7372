"""Any image and chain reads as an array of bytes does, whatever is done to it."""

import os
import random
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hvemu.devices.images import open_image
from hvemu.devices.images.changing import commit_image, rebase_image
from hvemu.devices.images.checking import check_vhd
from hvemu.devices.images.creating import copy_image, create_image, snapshot_image
from hvemu.devices.images.describing import describe
from hvemu.devices.images.host_file import HostFile
from hvemu.vocabulary.errors import UserError

SIZE = 41 * 512
BLOCK = 2048
SECTOR = st.integers(0, SIZE // 512 - 1)
COUNT = st.integers(1, 12)
NAMES = {"raw": "0.img", "vhd-fixed": "0.vhd", "vhd": "0.vhd"}


class Images(RuleBasedStateMachine):
    """One disk; its top image is open."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.number = 0
        self.parents = []
        self.model = bytearray(SIZE)

    @initialize(format=st.sampled_from(sorted(NAMES)))
    def create(self, format):
        self.path = os.path.join(self.folder.name, NAMES[format])
        create_image(self.path, SIZE, format, block_size=BLOCK)
        self.image = open_image(self.path)

    def name(self, suffix=".vhd"):
        self.number += 1
        return os.path.join(self.folder.name, f"{self.number}{suffix}")

    @rule(sector=SECTOR, count=COUNT, seed=st.integers(0, 255))
    def write(self, sector, count, seed):
        count = min(count, SIZE // 512 - sector)
        data = random.Random(seed).randbytes(512 * count) if seed else bytes(512 * count)
        self.image.write(sector * 512, data)
        self.model[sector * 512 : (sector + count) * 512] = data

    @rule(sector=SECTOR, count=COUNT)
    def discard(self, sector, count):
        count = min(count, SIZE // 512 - sector)
        self.image.discard(sector * 512, count * 512)
        self.model[sector * 512 : (sector + count) * 512] = bytes(count * 512)

    @rule(sector=SECTOR, count=COUNT)
    def read(self, sector, count):
        count = min(count, SIZE // 512 - sector)
        assert self.model[sector * 512 : (sector + count) * 512] == self.image.read(sector * 512, count * 512)

    @rule()
    def flush(self):
        self.image.flush()

    @rule()
    def reopen(self):
        self.image.close()
        self.image = open_image(self.path)

    @precondition(lambda self: len(self.parents) < 4)
    @rule()
    def snapshot(self):
        self.image.close()
        child = self.name()
        if self.path.endswith(".vhd"):
            snapshot_image(self.path, child, block_size=BLOCK)
            self.parents.append(self.path)
            self.path = child
        else:
            with pytest.raises(UserError, match="convert"):
                snapshot_image(self.path, child)
        self.image = open_image(self.path)

    @precondition(lambda self: self.parents)
    @rule(go_on_in_parent=st.booleans())
    def commit(self, go_on_in_parent):
        self.image.close()
        assert os.path.realpath(self.parents[-1]) == commit_image(self.path)
        assert 0 == describe(self.path)[0].allocated
        if go_on_in_parent:
            self.path = self.parents.pop()
        self.image = open_image(self.path)

    @precondition(lambda self: self.parents)
    @rule(fill=st.integers(0, 2), which=st.integers(0, 3))
    def rebase(self, fill, which):
        """Onto an older image of the chain, or onto a stranger."""
        self.image.close()
        if which < len(self.parents):
            del self.parents[which + 1 :]
            parent = self.parents[-1]
        else:
            parent = self.name()
            create_image(parent, SIZE, "vhd", block_size=2 * BLOCK)
            stranger = open_image(parent)
            stranger.write(fill * 4096, b"\1" * 8192)
            stranger.close()
            self.parents = [parent]
        rebase_image(self.path, parent)
        self.image = open_image(self.path)

    @rule(format=st.sampled_from(sorted(NAMES)))
    def convert(self, format):
        path = self.name(".img" if format == "raw" else ".vhd")
        self.image.flush()
        copy_image(self.image, path, format)
        self.image.close()
        self.path, self.parents = path, []
        self.image = open_image(path)

    @rule()
    def check(self):
        self.image.close()
        if self.path.endswith(".vhd"):
            file = HostFile.open(self.path, read_only=False)
            findings = check_vhd(file, repair=True)
            file.close()
            assert ([], []) == (findings.damages, findings.repaired)
        self.image = open_image(self.path)

    @invariant()
    def extents_cover_the_disk_and_tell_the_truth(self):
        if not hasattr(self, "image"):
            return
        offset = 0
        while offset < SIZE:
            length, allocated = self.image.extent(offset)
            assert length >= 512
            assert allocated or not any(self.model[offset : offset + length])
            offset += length
        assert SIZE == offset
        assert self.model == self.image.read(0, SIZE)

    def teardown(self):
        if hasattr(self, "image"):
            self.image.close()
        self.folder.cleanup()


TestImages = Images.TestCase
TestImages.settings = settings(max_examples=40, stateful_step_count=25)
