"""Help that teaches: every command's shows its examples."""

import pytest

from offdiff.cli import COMMANDS, main

WITHOUT = {"model info", "model sample", "bench status", "data list", "data info", "data convert"}
"""Commands whose options need no example."""


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - WITHOUT))
def test_examples_are_shown(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"offdiff {command}" in text.split("Examples:")[1]
