"""What recmtl tells of itself: the lists of recipes and presets, the file of one, its version."""

from __future__ import annotations

import pytest

from recmtl import __version__, cli
from recmtl.config import PRESETS
from recmtl.data.recipe import PACKAGED
from recmtl.errors import UserError

COMMANDS = {"recipe": (cli.recipes, PACKAGED), "preset": (cli.presets, PRESETS)}


@pytest.mark.parametrize("kind", COMMANDS)
def test_every_name_of_the_list_is_shown(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The file as it is, so that it can be copied and changed."""
    command, folder = COMMANDS[kind]
    command([])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == sorted(path.stem for path in folder.glob("*.toml"))
    for name in names:
        command(["show", name])
        assert capsys.readouterr().out == (folder / f"{name}.toml").read_text()


def test_what_a_recipe_extends_is_noted_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    cli.recipes(["show", "merrec_time"])
    assert capsys.readouterr().err == (
        "merrec_time extends merrec: `recmtl recipes show merrec` prints what it builds on\n"
    )
    cli.recipes(["show", "merrec"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("recipe", ["show", "merec"], "no recipe 'merec'; did you mean 'merrec'?"),
        ("preset", ["show", "mmo"], "no preset 'mmo'; did you mean 'mmoe'?"),
        ("preset", ["show", "../presets/mmoe"], "no preset '../presets/mmoe'; "),
        ("recipe", ["show"], "recmtl recipes show: NAME missing; the command is recmtl recipes show NAME"),
        ("preset", ["show", "mmoe", "ple"], "recmtl presets show: nothing takes 'ple'"),
        ("preset", ["mmoe"], "recmtl presets: nothing takes 'mmoe'"),
    ],
)
def test_mistakes_are_one_line(kind: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        COMMANDS[kind][0](words)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["recmtl", "--version"])
    cli.main()
    assert capsys.readouterr().out == f"recmtl {__version__}\n"
