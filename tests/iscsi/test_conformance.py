"""libiscsi's conformance suite and QEMU's tools against ``hvemu disk serve``; a skipped test is not a passed one."""

import re
import subprocess

import pytest

from tests.guests.packages import need
from tests.iscsi.serving import scratch, serving

TESTS = 230
"""Of libiscsi 1.19.0."""
LEAST_EXECUTED = 180
MEGABYTE = 1 << 20
_SECONDS = 300


def results(text: str) -> dict[str, str]:
    """The tests by ``Suite.Test`` and what became of them: passed, FAILED or SKIPPED."""
    found: dict[str, str] = {}
    suite = ""
    parts = re.split(r"^(Suite: \w+|  Test: \S+ \.\.\.)", text.partition("Run Summary")[0], flags=re.MULTILINE)
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        if head.startswith("Suite"):
            suite = head.split()[1]
        elif re.search(r"^(?:.*\.\.\.)?FAILED", body, re.MULTILINE) or "passed" not in body:
            found[f"{suite}.{head.split()[1]}"] = "FAILED"
        else:
            found[f"{suite}.{head.split()[1]}"] = "SKIPPED" if "[SKIPPED]" in body else "passed"
    return found


def run_suite(url: str, test: str, *more: str) -> dict[str, str]:
    """Run tests by name; fails when one failed."""
    command = ["iscsi-test-cu", "--dataloss", "-v", f"--test={test}", *more, url]
    result = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    found = results(result.stdout)
    assert [] == [name for name, what in found.items() if what == "FAILED"], result.stdout[-6000:]
    summary = re.search(r"tests +(\d+) +(\d+) +(\d+) +(\d+)", result.stdout)
    assert summary is not None, result.stdout[-2000:] + result.stderr[-2000:]
    assert (len(found), len(found), len(found), 0) == tuple(map(int, summary.groups()))
    return found


def test_the_output_is_understood():
    """A skip is none of the passes, a failure is found, and a line of a passed test that says FAILED is no failure."""
    text = (
        "Suite: One\n  Test: Good ...passed\n  Test: Bad ...FAILED\n    1. x.c:1\n"
        "  Test: Not ...    [SKIPPED] because\n    [SKIPPED] really\n\npassed\n"
        "Suite: Two\n  Test: Good ...    [FAILED] as it should\npassed\n  Test: Worse ...    [FAILED] no\nFAILED\n"
        "\n\nRun Summary: passed\n"
    )
    expected = {
        "One.Good": "passed",
        "One.Bad": "FAILED",
        "One.Not": "SKIPPED",
        "Two.Good": "passed",
        "Two.Worse": "FAILED",
    }
    assert expected == results(text)


@pytest.mark.slow
def test_the_conformance_suite_executes_most_of_its_tests_and_none_fails(tmp_path, record_property):
    """On a scratch image of 64 MiB; what is skipped is listed."""
    need("iscsi-test-cu", "libiscsi-bin")
    with serving(str(scratch(tmp_path, 64 * MEGABYTE))) as (_, url):
        found = run_suite(url, "ALL")
    executed = [name for name, what in found.items() if what == "passed"]
    skipped = [name for name, what in found.items() if what == "SKIPPED"]
    record_property("executed", len(executed))
    record_property("skipped", ", ".join(skipped))
    print(f"{len(executed)} executed, {len(skipped)} skipped: {', '.join(skipped)}")
    assert (TESTS, True) == (len(found), len(executed) >= LEAST_EXECUTED)
    suites = {name.partition(".")[0] for name in executed}
    assert {"CompareAndWrite", "Unmap", "ProutReserve", "ProutPreempt", "ProutClear", "PrinReadKeys"} <= suites


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tests"),
    [
        (
            ["--removable"],
            [
                *(f"PreventAllow.{name}" for name in "Simple ITNexusLoss Logout WarmReset ColdReset LUNReset".split()),
                "PreventAllow.2ITNexuses",
                "NoMedia.NoMediaSBC",
                "StartStopUnit.Simple",
            ],
        ),
        (["--read-only"], ["ReadOnly.ReadOnlySBC", "Mandatory.MandatorySBC", "Read16.Simple"]),
        (
            ["--physical-block", "4096"],
            ["WriteSame16.UnmapUnaligned", "CompareAndWrite.InvalidDataOutSize", "Unmap.Simple"],
        ),
        (["--chap", "joe:twelve letters"], ["Read10.Simple", "iSCSIcmdsn.iSCSICmdSnTooHigh"]),
    ],
)
def test_what_other_disks_make_it_execute(options, tests, tmp_path):
    """Removable and read-only ones, with large physical blocks; with CHAP. Nothing of this is skipped."""
    need("iscsi-test-cu", "libiscsi-bin")
    with serving(str(scratch(tmp_path, 64 * MEGABYTE)), *options) as (_, url):
        known = url.replace("//", "//joe%twelve letters@") if "--chap" in options else url
        for test in tests:
            assert {test: "passed"} == run_suite(known, f"ALL.{test}")


@pytest.mark.slow
def test_two_paths_to_one_disk(tmp_path):
    """Two sessions of one initiator; atomic test and set from both at once."""
    need("iscsi-test-cu", "libiscsi-bin")
    with serving(str(scratch(tmp_path, 64 * MEGABYTE))) as (_, url):
        found = run_suite(url, "ALL.MultipathIO", url)
    assert {"passed"} == set(found.values())
    assert 4 == len(found)


@pytest.mark.slow
def test_qemus_tools_read_and_write_the_disk(tmp_path):
    """qemu-img converts to it, compares with it and converts from it; a CD-ROM is read."""
    need("qemu-img", "qemu-utils", "qemu-block-extra")
    if "iscsi" not in subprocess.run(["qemu-img", "--help"], check=False, capture_output=True, text=True).stdout:
        need("qemu-img-with-iscsi", "qemu-block-extra")
    source = tmp_path / "source.img"
    pattern = b"".join(bytes((number,)) * 512 for number in range(256))
    source.write_bytes(bytes(MEGABYTE) + pattern * 8 + bytes(5 * MEGABYTE) + pattern)
    size = source.stat().st_size
    target, back, disc = scratch(tmp_path, size), tmp_path / "back.img", tmp_path / "disc.iso"

    def tool(*words: str) -> str:
        result = subprocess.run(["qemu-img", *words], check=False, capture_output=True, text=True, timeout=120)
        assert 0 == result.returncode, result.stderr
        return result.stdout

    with serving(str(target)) as (_, url):
        assert f"({size} bytes)" in tool("info", "-f", "raw", url)
        tool("convert", "-n", "-f", "raw", "-O", "raw", str(source), url)
        tool("compare", "-f", "raw", "-F", "raw", str(source), url)
        tool("convert", "-f", "raw", "-O", "raw", url, str(back))
    assert source.read_bytes() == target.read_bytes() == back.read_bytes()
    disc.write_bytes(pattern * 4)
    with serving(str(disc)) as (_, url):
        tool("convert", "-f", "raw", "-O", "raw", url, str(back))
    assert pattern * 4 == back.read_bytes()
