"""What a run leaves in its folder when it was killed in the midst of tidying up."""

from pathlib import Path

from offdiff.algos.bc import BCConfig
from offdiff.config import RunConfig
from offdiff.core.files import replacing
from offdiff.run import run


def test_a_finished_run_leaves_no_checkpoint_and_no_half_written_file(
    tmp_path: Path, toy_file: Path
) -> None:
    config = RunConfig(
        dataset=str(toy_file),
        algo=BCConfig(hidden=(8,), batch_size=16),
        updates=4,
        log_every=2,
        out=tmp_path / "out",
    )
    run(config, progress=False)
    (record,) = config.out.rglob("run.json")
    folder = record.parents[1]
    wanted = sorted(folder.rglob("*"))
    written = record.read_bytes()

    # As if the process had been killed after its last record, before the clean-up.
    for name in ("checkpoint.safetensors", "transitions.npy"):
        (folder / name).write_bytes(b"left over")
    unfinished = [replacing(f / "policy.safetensors") for f in (folder, record.parent)]
    for file in unfinished:
        file.__enter__()  # never left: the process is gone
    assert len(list(folder.rglob("*"))) == len(wanted) + 4

    run(config, progress=False)
    assert sorted(folder.rglob("*")) == wanted
    assert record.read_bytes() == written
