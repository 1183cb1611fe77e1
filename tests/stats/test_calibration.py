"""The simulation behind the claims of coverage and error rates, with few studies and so with wide bounds."""

from __future__ import annotations

import pytest

from benchmarks import calibration


def test_a_small_calibration_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert calibration.main(["--reps", "200", "--seed", "1"]) == 0
    printed = capsys.readouterr().out
    assert "39 of 39 within bounds" in printed
    assert "out of bounds" not in printed


def test_a_figure_out_of_its_bounds_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be seen if the looks' weights were forgotten."""
    rule_a = calibration.naive("Rule A", calibration.LOOKS)
    rules = [rule_a if rule.label == "Rule A" else rule for rule in calibration.LADDER_RULES]
    monkeypatch.setattr(calibration, "LADDER_RULES", rules)
    assert calibration.main(["--reps", "200", "--seed", "1"]) == 1
    assert "- family-wise error, ten steps without effect, Rule A: " in capsys.readouterr().out
