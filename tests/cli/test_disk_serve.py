"""``hvemu disk serve``: its URLs, its end, and the sentences for mistakes."""

import socket
import subprocess
import sys

import pytest

from hvemu.cli.disk_serve import _address
from tests.cli.process import PATIENCE, run
from tests.iscsi.initiator import login
from tests.iscsi.serving import scratch, serving


def test_it_prints_a_url_for_each_image_and_ends_cleanly(tmp_path):
    """Somebody who logs in is answered; SIGTERM is a clean end (the context checks it)."""
    disk, disc = scratch(tmp_path, 1 << 20), scratch(tmp_path, 1 << 20, "disc.ISO")
    with serving(str(disk), str(disc), "--iqn", "iqn.2026-11.org.hvemu:test") as (process, url):
        second = process.stdout.readline().strip()
        assert (url[-2:], second[-2:], url[:-2]) == ("/0", "/1", second[:-2])
        address = url.split("/")[2]
        with socket.create_connection(address.rsplit(":", 1), timeout=PATIENCE) as client:
            client.sendall(login({"InitiatorName": "iqn.x", "TargetName": "iqn.2026-11.org.hvemu:test"}))
            assert (0x23, 0) == ((data := client.recv(512))[0], data[36])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["/nowhere/x.img"], "Cannot open '/nowhere/x.img'"),
        (["IMAGE", "--listen", "0.0.0.0:0"], "Give --chap USER:SECRET"),
        (["IMAGE", "--listen", "here"], "Give --listen HOST:PORT"),
        (["IMAGE", "--iqn", "my disk"], "is no iSCSI name"),
        (["IMAGE", "--chap", "joe:short"], "12 to 255 characters"),
        (["IMAGE", "--chap", "@/nowhere"], "Cannot read '/nowhere'"),
        (["IMAGE", "--chap-mutual", "disk:a long secret"], "Give --chap USER:SECRET as well"),
        (["IMAGE", "--chap", "joe:one long secret", "--chap-mutual", "x:one long secret"], "another secret"),
        ([], "IMAGE"),
        (["EMPTY"], "has 0 bytes"),
    ],
)
def test_mistakes_are_a_sentence(words, sentence, tmp_path):
    """Status 2, nothing is served."""
    paths = {"IMAGE": str(scratch(tmp_path, 1 << 20)), "EMPTY": str(scratch(tmp_path, 0, "empty.img"))}
    result = run("disk", "serve", *[paths.get(word, word) for word in words])
    assert (2, "") == (result.returncode, result.stdout)
    assert sentence in result.stderr
    assert 1 == result.stderr.count("\n")


def test_a_port_that_is_taken(tmp_path):
    """Is a mistake too."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = run("disk", "serve", str(scratch(tmp_path, 512)), "--listen", f"127.0.0.1:{other.getsockname()[1]}")
    assert (2, True) == (result.returncode, "Give --listen another port" in result.stderr)


def test_a_secret_from_a_file(tmp_path):
    """So that nobody sees it in the list of processes."""
    (tmp_path / "secret").write_text("joe:a secret that is long\n", encoding="utf-8")
    with serving(str(scratch(tmp_path, 512)), "--chap", f"@{tmp_path / 'secret'}") as (_, url):
        assert url


def test_addresses():
    """With a host, without one, of version 6."""
    assert [("127.0.0.1", 0), ("127.0.0.1", 5), ("::1", 5)] == [
        _address(text) for text in ("127.0.0.1:0", ":5", "[::1]:5")
    ]


def test_the_table_of_disk_commands():
    """Unknown ones are told what there is."""
    assert "serve" in run("disk", "--help").stdout
    result = run("disk", "frobnicate")
    assert (2, True) == (result.returncode, "Commands are: " in result.stderr)
    assert (
        0
        == subprocess.run(
            [sys.executable, "-m", "hvemu", "disk", "serve", "--help"], check=False, capture_output=True
        ).returncode
    )
