"""MachineConfiguration: its TOML form, and what it refuses."""

import dataclasses
import os
import tomllib
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvemu.cpu.cpuid import FEATURE_BITS
from hvemu.machine.configuration import (
    CPU_MODELS,
    DEFAULT_RTC,
    LOADERS,
    MAXIMUM_MEMORY,
    MINIMUM_MEMORY,
    MODES,
    MachineConfiguration,
    from_file,
    from_toml,
    parse_size,
    to_toml,
)
from hvemu.vocabulary.errors import UserError

# Every character that is Unicode text, with the odd ones more often than chance has them
odd = st.sampled_from(
    "\0\t\n\r\x1b\x7f\x80\x85\xa0\xad\u200b\u2028\ufeff\ufffe\uffff\\\"'#=[]{}\U0001f600\U000e0001\U0010ffff"
)
text = st.text(st.one_of(odd, st.characters(exclude_categories=["Cs"])), max_size=40)
pages = st.integers(MINIMUM_MEMORY >> 12, MAXIMUM_MEMORY >> 12)
drive_options = st.sampled_from(("adapter=ide", "adapter=virtio-scsi,read-only", "cdrom", "nonpersistent"))
configurations = st.builds(
    lambda mode, disks, **others: MachineConfiguration(mode=mode, disks=() if mode == "pv" else disks, **others),
    image=text.filter(bool),
    disks=st.lists(st.builds("{},{}".format, text.filter(lambda name: name and "," not in name), drive_options)).map(
        lambda disks: tuple(disks[:4])
    ),
    name=text,
    identifier=st.one_of(st.just(""), st.uuids().map(str)),
    mode=st.sampled_from([mode for mode in MODES if mode != "svm"]),
    memory=pages.map(lambda count: count << 12),
    cpu=st.sampled_from(("", *CPU_MODELS)),
    cpu_without=st.lists(st.sampled_from(sorted(FEATURE_BITS)), max_size=3).map(tuple),
    hypervisor_leaves=st.sampled_from(("", "none", "xen")),
    append=text,
    initrd=text,
    modules=st.lists(text, max_size=3).map(tuple),
    loader=st.sampled_from(LOADERS),
    load_address=st.integers(0, MINIMUM_MEMORY - 1),
    serial=text,
    second_serial=text,
    display=st.sampled_from(("none", "text")),
    clock=st.sampled_from(("virtual", "host")),
    rtc=st.integers(0, (1 << 32) - 1),
    strict=st.booleans(),
    reboot=st.booleans(),
    count_instructions=st.booleans(),
)


def refusal(**fields: Any) -> str:
    """The sentence with which a configuration is refused."""
    with pytest.raises(UserError) as error:
        MachineConfiguration(**{"image": "kernel.elf", **fields})
    return checked(error.value)


def checked(error: UserError) -> str:
    """A sentence of a UserError, which ends with what to do."""
    sentence = str(error)
    assert error.hint
    assert sentence.endswith(error.hint)
    assert sentence.endswith(".")
    assert 2 == error.status
    return sentence


# ---------------------------------------------------------------------- TOML


@settings(deadline=None)
@given(configurations)
@example(MachineConfiguration(image='\U000e0001 \U0001f600 \x00\x7f\x80\\"\n', modules=('"""', "\\u0041", "")))
def test_what_is_written_is_read_back(configuration: MachineConfiguration) -> None:
    """Equal in every field, in one line per field, whatever characters there are."""
    written = to_toml(configuration)
    assert configuration == from_toml(written)
    assert [field.name for field in dataclasses.fields(configuration)] == list(tomllib.loads(written))
    assert len(dataclasses.fields(configuration)) == len(written.splitlines())
    assert written == written.encode("utf-8").decode("utf-8")


@settings(deadline=None)
@given(configurations)
def test_it_survives_a_file(tmp_path_factory: pytest.TempPathFactory, configuration: MachineConfiguration) -> None:
    """As UTF-8 bytes."""
    path = tmp_path_factory.mktemp("configurations") / "machine.toml"
    path.write_bytes(to_toml(configuration).encode("utf-8"))
    assert configuration == from_file(path)


def test_every_field_survives() -> None:
    """A value other than the default in each, so that none can be forgotten."""
    values: dict[str, Any] = {
        "image": "a", "name": "b", "identifier": str(uuid.UUID(int=7)), "memory": 5 << 20, "cpu": "qemu32",
        "cpu_without": ("nx", "pae"), "append": "c", "initrd": "d", "modules": ("e", "f"), "loader": "flat",
        "disks": ("g",), "parents_in": ("h",), "scratch_disk": 512,
        "load_address": 0x1000, "serial": "none", "second_serial": "stdio", "display": "text", "clock": "host",
        "rtc": 1, "strict": True, "reboot": True, "count_instructions": True,
        "mode": "trap", "mmu": "shadow", "shadow": "flush", "audit": True, "hypervisor_leaves": "kvm",
    }  # fmt: skip
    others: dict[str, Any] = {"mode": "svm", "mmu": "nested-2", "intercept": ("rdtsc", "pf"), "cpu": "epyc"}
    drives: dict[str, Any] = {"disks": ("g",), "boot_order": "dc"}
    fields = {field.name: field for field in dataclasses.fields(MachineConfiguration)}
    assert set(fields) - {"version"} == {*values, *others, *drives}
    for changed in (values, {"image": "a", **others}, drives):
        assert [] == [name for name, value in changed.items() if fields[name].default == value]
        configuration = MachineConfiguration(**changed)
        assert configuration == from_toml(to_toml(configuration))
        assert changed == {name: getattr(from_toml(to_toml(configuration)), name) for name in changed}


def test_a_technique_is_refused_what_it_has_not() -> None:
    """By name, and with what to do."""
    assert "penryn has none" in refusal(mode="svm", cpu="penryn")
    assert "no paging technique 'shadow'" in refusal(mode="native", mmu="shadow")
    assert "nested and nested-2 and shadow" in refusal(mode="svm", mmu="direct")
    assert "no shadow page tables" in refusal(mode="svm", shadow="flush")
    assert "--mode svm" in refusal(mode="bt", intercept=("cpuid",))
    assert "rdtsc" in refusal(mode="svm", intercept=("nothing",))


def test_mode_svm_has_a_cpu_with_svm_unless_told() -> None:
    """And its own choice of paging is the nested one."""
    configuration = MachineConfiguration(image="kernel.elf", mode="svm")
    assert ("opteron-g3", "nested") == (configuration.cpu, configuration.mmu)


def test_what_is_left_out_has_its_default() -> None:
    """An image is all that is needed."""
    assert MachineConfiguration(image="kernel.elf") == from_toml("image = 'kernel.elf'")


def test_overrides_win() -> None:
    """As options of the command line do, also over a value that would be refused."""
    assert "other" == from_toml("image = 'kernel.elf'", image="other").image
    assert 8 << 20 == from_toml("image = 'k'\nmemory = 1", memory=8 << 20).memory


def test_memory_may_be_written_as_people_write_it() -> None:
    """A string with a unit; a number is bytes."""
    assert 64 << 20 == from_toml("image = 'k'\nmemory = '64M'").memory
    assert 1 << 30 == from_toml("image = 'k'\nmemory = '1G'").memory
    assert 2 << 20 == from_toml(f"image = 'k'\nmemory = {2 << 20}").memory


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("", "names no image. Add a line like: image = 'kernel.elf'."),
        ("image = ", "is not TOML"),
        ("image = 'a'\nimage = 'b'", "is not TOML"),
        ("image = '\x00'", "is not TOML"),
        ('image = "\\ud800"', "is not TOML"),
        ("image = 'k'\nrtc = " + "9" * 5000, "is not TOML"),
        ("image = " + "[" * 100_000, "is not TOML"),
        ("image = 'k'\nrtc = 0x" + "f" * 5000, "'rtc' has more than 64 bits"),
        ("image = 'k'\nmemory = -0x" + "f" * 17, "is not TOML"),
        ("image = 'k'\nversion = 9223372036854775808", "'version' has more than 64 bits"),
        ("image = 'k'\ncolour = 1", "Unknown key 'colour' in the configuration. Known keys: append, audit,"),
        ("[image]\npath = 'k'", "'image' must be of type str"),
        ("image = 5", "'image' must be of type str"),
        ("image = 2000-01-01", "'image' must be of type str"),
        ("image = 'k'\nstrict = 1", "'strict' must be of type bool"),
        ("image = 'k'\nrtc = true", "'rtc' must be of type int"),
        ("image = 'k'\nrtc = 1.0", "'rtc' must be of type int"),
        ("image = 'k'\nmemory = 64.0", "'memory' must be of type int"),
        ("image = 'k'\nmodules = 'm'", "'modules' must be a list of strings. As in: modules = ['a', 'b']."),
        ("image = 'k'\nmodules = [1]", "'modules' must be a list of strings"),
        ("image = 'k'\ncpu_without = ['nx', ['pae']]", "'cpu_without' must be a list of strings"),
        ("image = 'k'\nmemory = 'much'", "'much' is not a memory size"),
        ("image = 'k'\nmemory = 64", "Memory of 64 bytes is not possible"),
        ("image = 'k'\ncpu_without = ['sse9']", "There is no CPU feature 'sse9'. Choose one of: fpu,"),
    ],
    ids=range(24),
)  # fmt: skip
def test_what_a_file_can_get_wrong(toml: str, words: str) -> None:
    """One sentence each."""
    with pytest.raises(UserError) as error:
        from_toml(toml)
    assert words in checked(error.value)


values_of_toml = st.one_of(
    text.map(lambda value: '"' + "".join(f"\\U{ord(letter):08x}" for letter in value) + '"'),
    st.integers(-(1 << 70), 1 << 70).map(str),
    st.sampled_from(
        ("true", "false", "1.5", "inf", "[]", "['a']", "[1]", "{}", "{a = 1}", "1979-05-27", "", "'", "[[")
    ),
)
keys = st.one_of(st.sampled_from([field.name for field in dataclasses.fields(MachineConfiguration)]), st.just("other"))


@settings(deadline=None)
@given(st.one_of(st.text(max_size=200), st.dictionaries(keys, values_of_toml, max_size=8)))
def test_no_text_does_anything_but_configure_or_be_refused(content: str | dict[str, str]) -> None:
    """Noise, and known keys with values of any type and size."""
    if isinstance(content, dict):
        content = "\n".join(f"{key} = {value}" for key, value in content.items())
    try:
        configuration = from_toml(content)
    except UserError as error:
        checked(error)
    else:
        assert configuration == from_toml(to_toml(configuration))


# ---------------------------------------------------------------------- files


def make_missing(folder: Path) -> Path:
    """Nothing there."""
    return folder / "missing.toml"


def make_directory(folder: Path) -> Path:
    """A directory."""
    return folder


def make_pipe(folder: Path) -> Path:
    """A pipe that nobody writes to."""
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def make_latin(folder: Path) -> Path:
    """Not UTF-8."""
    (folder / "latin.toml").write_bytes(b"image = 'k\xe4rnel'")
    return folder / "latin.toml"


def make_long(folder: Path) -> Path:
    """More than a configuration can be."""
    (folder / "long.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    return folder / "long.toml"


def test_a_configuration_file_of_exactly_1_mib(tmp_path: Path) -> None:
    """Is read."""
    path = tmp_path / "long.toml"
    path.write_bytes(b"image = 'kernel.elf' ".ljust((1 << 20) - 1, b" ") + b"\n")
    assert "kernel.elf" == from_file(path).image


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_missing, "No such file"),
        (make_directory, "is not a regular file"),
        (make_pipe, "is not a regular file"),
        (make_latin, "can't decode"),
        (make_long, "longer than 1 MiB"),
        (lambda folder: Path("/dev/zero"), "is not a regular file"),
        (lambda folder: Path("zero\0byte"), "null"),
        (lambda folder: folder / ("x" * 300), "name too long"),
    ],
)
def test_what_is_not_a_configuration_file(make: Any, words: str, tmp_path: Path) -> None:
    """At once, and with what to check."""
    with pytest.raises(UserError) as error:
        from_file(make(tmp_path))
    assert words in checked(error.value)


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mode": "svn"}, f"There is no mode 'svn'. Choose one of: {', '.join(MODES)}."),
        ({"cpu": "z80"}, "There is no cpu 'z80'. Choose one of: conroe, penryn,"),
        ({"cpu_without": ("nx", "x")}, "There is no CPU feature 'x'"),
        ({"clock": "sundial"}, "Choose one of: virtual, host."),
        ({"display": "sdl"}, "Choose one of: none, text."),
        ({"loader": "grub"}, "Choose one of: auto, multiboot, bzimage, disk, flat, xen."),
        ({"hypervisor_leaves": "bhyve"}, "Choose one of: hvemu, kvm, xen, hyperv, vmware, none."),
        ({"hypervisor_leaves": "kvm", "mode": "pv"}, "Use --hypervisor-leaves xen or none with --mode pv."),
        ({"version": 2}, "This hvemu reads version 1."),
        ({"memory": 0}, "Choose 1M to 3G in multiples of 4K"),
        ({"memory": MINIMUM_MEMORY - 4096}, "Choose 1M to 3G"),
        ({"memory": MAXIMUM_MEMORY + 4096}, "Choose 1M to 3G"),
        ({"memory": (64 << 20) + 1}, "in multiples of 4K"),
        ({"memory": -4096}, "Memory of -4096 bytes"),
        ({"rtc": -1}, "Give --rtc as"),
        ({"rtc": 1 << 32}, "Give --rtc as"),
        ({"load_address": -1}, "Load address -0x1 is outside memory. Choose one below --memory."),
        ({"load_address": 64 << 20}, "Choose one below --memory."),
        ({"append": "x" * 4001}, "Shorten --append."),
        ({"append": "\u00e4" * 2001}, "longer than 4000 bytes"),
        ({"identifier": "not-a-uuid"}, "Leave it out to get one."),
        ({"image": "k\udcffrnel"}, "The image 'k\\udcffrnel' is not UTF-8. Rename the file, or type it again."),
        ({"append": "\ud800"}, "The append '\\ud800' is not UTF-8"),
        ({"name": "\udfff"}, "is not UTF-8"),
        ({"modules": ("good", "b\udc80d")}, "is not UTF-8"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], words: str) -> None:
    """With the value, and with what exists or what to do."""
    assert words in refusal(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"memory": MINIMUM_MEMORY, "load_address": MINIMUM_MEMORY - 1},
        {"memory": MAXIMUM_MEMORY},
        {"rtc": 0},
        {"rtc": (1 << 32) - 1},
        {"append": "\u00e4" * 2000},
        {"load_address": 0},
        {"cpu_without": tuple(FEATURE_BITS)},
    ],
)
def test_the_edges_are_allowed(fields: dict[str, Any]) -> None:
    """The last value of each kind that is possible."""
    assert (1 << 20, 3 << 30) == (MINIMUM_MEMORY, MAXIMUM_MEMORY)
    configuration = MachineConfiguration(image="kernel.elf", **fields)
    assert fields == {name: getattr(configuration, name) for name in fields}


def test_a_paravirtual_guest_is_shown_xen_and_others_nothing() -> None:
    """Unless it is chosen otherwise."""
    shown = {mode: MachineConfiguration(image="kernel.elf", mode=mode).hypervisor_leaves for mode in MODES}
    assert {"native": "none", "trap": "none", "bt": "none", "svm": "none", "pv": "xen"} == shown
    assert "none" == MachineConfiguration(image="kernel.elf", mode="pv", hypervisor_leaves="none").hypervisor_leaves


def test_the_identifier_follows_from_the_name() -> None:
    """The same name is the same machine; another name is another."""
    first, again, other = (
        MachineConfiguration(image=image, name=name) for image, name in (("a", "x"), ("b", "x"), ("a", "y"))
    )
    assert first.identifier == again.identifier
    assert first.identifier != other.identifier
    assert first.identifier == str(uuid.UUID(first.identifier))


def test_a_configuration_is_frozen() -> None:
    """It is a value."""
    configuration = MachineConfiguration(image="kernel.elf")
    with pytest.raises(dataclasses.FrozenInstanceError):
        configuration.memory = 0  # type: ignore[misc]
    assert configuration == dataclasses.replace(configuration)
    assert DEFAULT_RTC == configuration.rtc


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64M", 64 << 20), ("64m", 64 << 20), ("64", 64 << 20), ("1G", 1 << 30), ("4096K", 4 << 20), ("4096k", 4 << 20),
        ("4096B", 4096), ("0", 0), ("007M", 7 << 20), ("999999999999G", 999999999999 << 30),
    ],
)  # fmt: skip
def test_sizes_as_people_write_them(text: str, expected: int) -> None:
    """With a unit of either case, or plain MiB."""
    assert expected == parse_size(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "M", "-1M", "+1M", "1.5G", "1e3M", "0x40M", "64MB", "64MiB", "64 M", " 64M", "1T", "6_4M", "\u0664M",
        "64\u212a", "9999999999999M", "64\u00b5", "\u00b2M", "64M\n", "\udcff", "\0",
    ],
)  # fmt: skip
def test_what_is_no_size(text: str) -> None:
    """Each is named, with how to write it."""
    with pytest.raises(UserError, match="is not a memory size") as error:
        parse_size(text)
    assert checked(error.value).endswith("Write it as 64M or 1G.")


@given(st.text(max_size=20))
def test_no_text_makes_parse_size_do_anything_else(given_text: str) -> None:
    """A number of bytes, or a UserError."""
    try:
        assert parse_size(given_text) >= 0
    except UserError as error:
        checked(error)
