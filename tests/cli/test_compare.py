"""``hvemu compare``: one guest under every technique."""

import importlib.util
import json
import signal
from pathlib import Path

import pytest

from hvemu.cli import main
from tests.cli.process import PATIENCE, ROOT, engine_of_a_child, start

Captured = pytest.CaptureFixture[str]


def test_a_guest_with_a_port_runs_under_every_technique(tmp_path: Path, capsys: Captured) -> None:
    """Its port stands for it in mode pv; everything did the same; the JSON says what the table says."""
    path = tmp_path / "compared.json"
    assert 0 == main(["compare", "processes", "--append", "work=fork:2", "--json", str(path)])
    output = capsys.readouterr().out
    assert "trap, bt, svm, svm/shadow: the guest did the same: console, verdict, position," in output
    assert "pv: the guest (a port) did the same: console and verdict" in output
    assert "hypercall " in output
    data = json.loads(path.read_text())
    assert ["native", "trap", "bt", "svm", "svm/shadow", "pv"] == [row["technique"] for row in data["techniques"]]
    assert {"opteron-g3"} == {data["cpu"]}
    assert data["techniques"][-1]["image"].endswith("processes_pv.elf")
    assert data["techniques"][-1]["hypercalls"] > 0


def test_results_that_differ_are_status_74(capsys: Captured) -> None:
    """A guest that asks what mode trap cannot hide."""
    assert 74 == main(["compare", "sensitive", "--append", "sgdt kernel", "--modes", "native,trap"])
    assert "trap: DIFFERS in console, line " in capsys.readouterr().out


def test_another_image_is_tried_under_all_techniques(tmp_path: Path, capsys: Captured) -> None:
    """What refuses it says why, and that is no difference."""
    image = tmp_path / "flat.bin"
    image.write_bytes(bytes.fromhex("b010 e6f4 f4"))  # mov al, 10h / out 0F4h, al / hlt
    assert 0 == main(["compare", str(image), "--loader", "flat"])
    output = capsys.readouterr().out
    assert "trap, bt, svm, svm/shadow: the guest did the same" in output
    assert "pv: cannot run it. Mode pv cannot run it: --loader flat is not for paravirtual kernels." in " ".join(
        output.split()
    )


def test_a_guest_of_the_catalogue_runs_where_it_is_written_for(capsys: Captured) -> None:
    """Real mode is not for mode trap; its input is typed."""
    assert 0 == main(["compare", "realmode_boot", "--modes", "native,svm"])
    assert "svm: the guest did the same" in capsys.readouterr().out


def test_a_cpu_without_virtualization_leaves_svm_out(capsys: Captured) -> None:
    """With a sentence; unless svm was asked for by name, which is a mistake."""
    assert 0 == main(["compare", "hello", "--cpu", "penryn"])
    output = " ".join(capsys.readouterr().out.split())
    assert "svm, svm/shadow: cannot run it. Mode svm needs a CPU with AMD-V, and penryn has none." in output


def test_a_configuration_can_be_compared(tmp_path: Path, capsys: Captured) -> None:
    """Its own technique is one of those that are asked for, its memory everybody's."""
    path = tmp_path / "machine.toml"
    image = ROOT / "guests" / "01_hello" / "hello.elf"
    path.write_text(f'image = "{image}"\nmode = "trap"\nshadow = "simple"\nmemory = "32M"\n')
    assert 0 == main(["compare", "--config", str(path), "--modes", "native,trap"])
    assert "guest on penryn, 32 MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "No image is given. Type: hvemu compare IMAGE;"),
        (["nothere"], "There is no image nothere."),
        (["hello", "--modes", "native,vt"], "There is no technique 'vt'. Techniques are: native, trap,"),
        (["hello", "--modes", "svm", "--cpu", "penryn"], "Mode svm needs a CPU with AMD-V, and penryn has none."),
        (["hello", "--json", "/nowhere/at/all"], "Cannot write '/nowhere/at/all'"),
        (["hello", "--until", "soon"], "'soon' is not a number."),
        (["hello", "--timeout", "-1"], "'-1' is not a number of seconds."),
    ],
)
def test_mistakes_are_sentences(words: list[str], sentence: str, capsys: Captured) -> None:
    """Status 2, before anything runs."""
    assert 2 == main(["compare", *words])
    assert capsys.readouterr().err.startswith(f"hvemu: {sentence}")


def test_the_cost_model_is_printed(capsys: Captured) -> None:
    """Without an image."""
    assert 0 == main(["compare", "--cost-model"])
    assert "world_switch         5216  derived" in capsys.readouterr().out


def test_without_matplotlib_a_plot_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """One sentence that names the extra."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert 2 == main(["compare", "hello", "--plot", "compared.svg"])
    assert "Type: pip install 'hvemu[plot]'." in capsys.readouterr().err


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    """SVG, with the techniques and the causes in words."""
    pytest.importorskip("matplotlib", reason="needs the extra: pip install 'hvemu[plot]'")
    path = tmp_path / "compared.svg"
    assert 0 == main(["compare", "hello", "--modes", "native,trap", "--plot", str(path)])
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    for word in ("native", "trap", "io_out", "hello on penryn"):
        assert f">{word}</text>" in text


def test_what_cannot_run_a_64_bit_guest_is_no_difference(capsys: Captured) -> None:
    """The catalogue says svm, and that holds for nested paging."""
    assert 0 == main(["compare", "long_mode"])
    said = " ".join(capsys.readouterr().out.split())
    assert "svm: the guest did the same" in said
    assert "svm/shadow: cannot run it. long_mode.elf is a 64-bit kernel" in said


def test_an_interrupted_comparison_ends_at_once() -> None:
    """Status 130, also if only the parent is told."""
    with start("compare", "loop_forever", "--modes", "native") as process:
        assert engine_of_a_child(process)
        process.send_signal(signal.SIGINT)
        assert 130 == process.wait(PATIENCE)
