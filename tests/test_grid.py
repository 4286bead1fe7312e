"""Grids: what a TOML file asks for, and what is wrong with one."""

from pathlib import Path

import pytest

from offdiff.cli.run import parse
from offdiff.core.errors import InputError
from offdiff.grid import read_grid, ready_grids
from offdiff.grid_plan import plan, wanted
from offdiff.lines import Method


def grid(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_blocks_are_products_and_options_add_up(tmp_path: Path) -> None:
    found = read_grid(
        grid(
            tmp_path,
            """
            seeds = [3, 4]
            datasets = ["a", "b"]
            options = { updates = 10, clip_actions = true }
            [[runs]]
            algos = ["bc", "iql"]
            augmenters = ["none", "pgd"]
            [[runs]]
            planners = ["dt"]
            datasets = ["c"]
            options = { updates = 20 }
            variants = [{ "planner.hidden" = [8, 8] }, { "planner.pin_goal" = false }]
            """,
        )
    )
    assert found.name == "mine"
    assert len(found.cells) == 2 * 2 * 2 + 2
    assert found.cells[1].arguments(found.cells[1].seeds) == (
        [
            "--algo",
            "bc",
            "--dataset",
            "a",
            "--augment",
            "pgd",
            "--seeds",
            "3",
            "4",
            "--updates",
            "10",
            "--clip-actions",
        ]
    )
    assert [" ".join(cell.arguments((3,))) for cell in found.cells[-2:]] == [
        "--planner dt --dataset c --seeds 3 --updates 20 --clip-actions --planner.hidden 8 8",
        "--planner dt --dataset c --seeds 3 --updates 20 --clip-actions --planner.no-pin-goal",
    ]
    assert [cell.together for cell in found.cells] == [True] * 8 + [False] * 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = [", "no TOML"),
        ("seeds = [0]", r"no \[\[runs\]\]"),
        ("sed = 1\n[[runs]]\nalgo = ['bc']", "neither algos nor planners.*'algo'.*'sed'"),
        ("seeds = ['x']\n[[runs]]\nalgos = ['bc']", "seeds must be a list of numbers"),
        ("[[runs]]\nalgos = 'bc'", "algos must be a list of names"),
        ("[[runs]]\nalgos = ['bc']\noptions = {algo = {x = 1}}", "'algo' is not for options"),
        ("[[runs]]\nalgos = ['bc']\nvariants = [1]", "must be tables"),
    ],
)
def test_files_of_another_form(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_grid(grid(tmp_path, text))


def test_an_unknown_grid_is_told_the_ready_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'smoke'"):
        read_grid("smok")


@pytest.mark.parametrize("name", ready_grids())
def test_ready_grids_are_read_and_their_methods_take_their_options(
    name: str, tmp_path: Path
) -> None:
    found = read_grid(name)
    assert found.about
    for cell in found.cells:
        config = parse(cell.arguments(cell.seeds))
        assert config.seeds == cell.seeds


def test_everything_unknown_is_listed_at_once(tmp_path: Path) -> None:
    text = """
        datasets = ["sample", "hoper-medium-v2"]
        [[runs]]
        algos = ["iqll", "bc"]
        augmenters = ["none", "pdg"]
        [[runs]]
        planners = ["difuser"]
        [[runs]]
        algos = ["bc"]
        datasets = ["sample"]
        options = { "algo.expectile" = 0.5, updates = 0 }
    """
    with pytest.raises(InputError) as told:
        plan(read_grid(grid(tmp_path, text)), tmp_path, parse)
    for word in ("'hoper-medium-v2'; did you mean 'hopper-medium-v2'", "'iqll'; did you mean 'iql'",
                 "'pdg'; did you mean 'pgd'", "'difuser'; did you mean 'diffuser'",
                 "--algo.expectile"):  # fmt: skip
        assert word in str(told.value)
    assert str(told.value).count("iqll'") == 1
    assert "\n" not in str(told.value)


def test_values_out_of_range_are_told(tmp_path: Path) -> None:
    text = '[[runs]]\nalgos = ["bc"]\noptions = { updates = 0 }'
    with pytest.raises(InputError, match="updates must be at least 1, got 0") as told:
        plan(read_grid(grid(tmp_path, text)), tmp_path, parse)
    assert "full helptext" not in str(told.value)


def test_the_same_run_twice_is_refused(tmp_path: Path, toy_file: Path) -> None:
    text = f"""
        datasets = ["{toy_file}"]
        seeds = [0, 1]
        [[runs]]
        algos = ["bc"]
        [[runs]]
        algos = ["bc", "iql"]
        seeds = [1, 2]
        options = {{ "algo.learning_rate" = 3e-4 }}
    """
    with pytest.raises(InputError, match=r"asks twice for bc, 10,000 updates on toy with seed 1;"):
        plan(read_grid(grid(tmp_path, text)), tmp_path / "out", parse)


def test_seeds_are_grouped_and_finished_ones_are_found_in_other_groups(
    tmp_path: Path, toy_file: Path
) -> None:
    out = tmp_path / "out"

    def jobs(seeds: str, together: str = "true") -> list[tuple[tuple[int, ...], str]]:
        text = f"""
            datasets = ["{toy_file}"]
            seeds = {seeds}
            [[runs]]
            algos = ["bc"]
            together = {together}
        """
        found = plan(read_grid(grid(tmp_path, text)), out, parse)
        return [(job.seeds, job.state) for job in found.jobs]

    assert jobs("[0, 1, 2]") == [((0, 1, 2), "missing")]
    assert jobs("[0, 1, 2]", "false") == [((0,), "missing"), ((1,), "missing"), ((2,), "missing")]
    text = f'datasets = ["{toy_file}"]\nseeds = [0, 1]\n[[runs]]\nalgos = ["bc"]'
    folder = plan(read_grid(grid(tmp_path, text)), out, parse).jobs[0].folder
    for seed in (0, 1):
        folder.seed(seed).mkdir(parents=True)
        (folder.seed(seed) / "run.json").touch()
    assert jobs("[0, 1]") == [((0, 1), "finished")]
    assert jobs("[1, 2, 3]") == [((1,), "finished"), ((2, 3), "missing")]
    assert jobs("[1, 2]", "false") == [((1,), "finished"), ((2,), "missing")]


def test_what_a_table_is_to_look_for_needs_no_data(tmp_path: Path) -> None:
    text = """
        datasets = ["sample", "somewhere/mine.hdf5"]
        [[runs]]
        algos = ["bc"]
        seeds = [1, 2]
        [[runs]]
        algos = ["bc", "iql"]
        augmenters = ["pgd"]
        datasets = ["hopper-medium-v2"]
        options = { updates = 7, "augment.start" = 1, "algo.hidden" = [8] }
    """
    pgd = "augment.start=1 hidden=[8]"
    assert wanted(read_grid(grid(tmp_path, text)), parse) == {
        ("hopper-mixed-sample", Method("bc", "", 10_000)): (1, 2),
        ("mine", Method("bc", "", 10_000)): (1, 2),
        ("hopper-medium-v2", Method("bc+pgd", pgd, 7)): (0,),
        ("hopper-medium-v2", Method("iql+pgd", pgd, 7)): (0,),
    }
