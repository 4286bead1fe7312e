"""The picture is whole, of the promised size, and shows the numbers that it is given."""

from pathlib import Path

import numpy as np
import pytest

from offdiff.core.errors import InputError, MissingExtraError
from offdiff.diagnostics import Diagnostics, PolicyAgreement
from offdiff.plots import History, can_plot, plot_diagnostics
from offdiff.simulate import DynamicsError

needs_matplotlib = pytest.mark.skipif(not can_plot(), reason="needs the extra plot")


def error(mean: float) -> DynamicsError:
    return DynamicsError(
        mean=mean,
        median=mean / 2,
        p95=4 * mean,
        by_row=[mean, None, 0.0],
        reward=mean,
        reward_median=mean,
        reward_p95=mean,
        reward_by_row=[mean, None, mean],
        wrong_ends=0.01,
        judged=0.9,
    )


def agreement(std: float) -> PolicyAgreement:
    return PolicyAgreement(log_likelihood=-std, action_mse=0.1, residual_mean=0.0, residual_std=std)


def found(mean: float, *, policy: bool = True, simulator: bool = True) -> Diagnostics:
    return Diagnostics(
        dynamics=error(mean) if simulator else None,
        floor=error(0.01) if simulator else None,
        policy=agreement(1.0) if policy else None,
        behaviour=agreement(1.5) if policy else None,
        broken=0.1,
        not_finite=0.0,
        outside=0.1,
        beyond=0.0,
        terminal_rate=0.004,
        data_terminal_rate=0.005,
        length=15.0,
        novelty=1.0,
        wasserstein_obs=0.1,
        wasserstein_action=0.1,
    )


HISTORIES: dict[str, History] = {
    "a run": [(0, found(0.1, policy=False)), (1000, found(0.2)), (2000, found(0.3))],
    "one generation": [(0, found(0.1))],
    "no error": [(0, found(0.0))],
    "all unknown": [(0, found(0.1, policy=False, simulator=False))],
}


@needs_matplotlib
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HISTORIES)
def test_a_picture_of_1200_by_800(tmp_path: Path, name: str) -> None:
    from matplotlib.image import imread

    path = tmp_path / "new" / "diagnostics.png"
    plot_diagnostics(HISTORIES[name], path)
    picture = imread(path)
    assert picture.shape[:2] == (800, 1200)
    assert 0.01 < (picture[..., :3] < 0.9).any(-1).mean() < 0.3, "a drawing, not a blank"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@needs_matplotlib
def test_records_give_the_same_picture(tmp_path: Path) -> None:
    history = HISTORIES["a run"]
    plot_diagnostics(history, tmp_path / "a.png")
    rows = [{"update": update, "seed": 0, **one.as_json()} for update, one in history]
    plot_diagnostics(rows, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@needs_matplotlib
def test_lines_are_the_medians_of_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig

    def catch(figure: Figure, *args: object, **options: object) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", catch)
    plot_diagnostics([(0, found(0.1)), (0, found(0.3)), (500, found(0.4))], tmp_path / "a.png")
    lines = {
        line.get_label(): np.asarray(line.get_ydata())
        for panel in figures[0].axes
        for line in panel.get_lines()
    }
    np.testing.assert_allclose(lines["mean"], [0.2, 0.4])
    np.testing.assert_allclose(lines["synthetic, update 500"], [0.4, 1e-16])
    np.testing.assert_allclose(lines["recorded data, 0.01"], 0.01)
    np.testing.assert_allclose(lines["residual std of recorded data"], 1.5)
    np.testing.assert_allclose(lines["terminal"], 0.4)
    for panel in figures[0].axes:
        assert panel.get_ylabel(), "every scale has a name"


def test_nothing_to_plot(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no generation"):
        plot_diagnostics([], tmp_path / "a.png")
    assert not any(tmp_path.iterdir())


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offdiff.plots.find_spec", lambda name: None)
    assert not can_plot()
    with pytest.raises(MissingExtraError, match=r"offdiff\[plot\]"):
        plot_diagnostics(HISTORIES["a run"], tmp_path / "a.png")
    assert not any(tmp_path.iterdir())
