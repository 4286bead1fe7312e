"""Time per update of training from disk against training from memory, under a real memory cap.

Two workers train the same learner on the same made-up transitions (Hopper's sizes) and take turns
block by block. One holds them in memory. The other maps a file four times as large as the memory
that its control group grants it for everything, page cache included, so that most rows have to
come from the disk; the file is dropped from the page cache before it starts. The figure to quote
is the median over pairs of (mapped seconds / in-memory seconds), by the clock; the bytes that were
read show that the disk was really used.

    python benchmarks/mapped.py                                      # 512 MiB cap, 2 GiB of data
    python benchmarks/mapped.py --cores 0 1 --algo td3bc

Needs Linux, room for the data once in memory and once on disk, and a memory control group in which
a child may be made: with cgroup v1 this process's own does (root), with v2 give an empty delegated
one with --cgroup. Writes results/mapped/<algo>-<n>-core.json and rewrites README.md there.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turns import Block, Task, Worker, cpu_name, serve, summary

if TYPE_CHECKING:
    from offdiff.core.types import Batch

RESULTS = Path(__file__).parents[1] / "results" / "mapped"
OBS, ACTION, CHUNK_ROWS = 11, 3, 65_536
ROW_BYTES = 4 * (2 * (OBS + ACTION) + 2)
TIMES_THE_CAP = 4


def made_up(total: int) -> "Iterator[Batch]":
    """`total` transitions in chunks; the same ones whenever asked."""
    import torch

    from offdiff.core.types import Batch

    generator = torch.Generator().manual_seed(0)
    for start in range(0, total, CHUNK_ROWS):
        n = min(CHUNK_ROWS, total - start)
        obs, next_obs = torch.randn(2, n, OBS, generator=generator)
        action, next_action = torch.rand(2, n, ACTION, generator=generator) * 2 - 1
        reward = torch.randn(n, generator=generator)
        yield Batch(obs, action, reward, next_obs, torch.zeros(n), next_action)


def work(args: argparse.Namespace) -> tuple[Mapping[str, Task], dict[str, Any]]:
    """The worker: a learner on the store it was given."""
    if args.cgroup:
        # Before torch is loaded: what a process holds already stays charged to its old group.
        (args.cgroup / "cgroup.procs").write_text(str(os.getpid()))
    import torch

    from offdiff.core.numerics import keep_freed_memory, use_fastest_exact_matmul
    from offdiff.core.protocols import Replay
    from offdiff.core.registry import resolve
    from offdiff.core.seeding import SeedStreams
    from offdiff.core.types import Spec
    from offdiff.data.buffer import ReplayBuffer
    from offdiff.data.mapped import MappedReplay
    from offdiff.training import add_metrics

    os.sched_setaffinity(0, args.cores)
    torch.set_num_threads(1)
    keep_freed_memory()
    use_fastest_exact_matmul()
    spec, device = Spec(OBS, ACTION), torch.device("cpu")
    replay: Replay
    if args.worker == "mapped":
        replay = MappedReplay(args.file, spec, device)
    else:
        replay = buffer = ReplayBuffer(args.rows, spec, device)
        for chunk in made_up(args.rows):
            buffer.extend(chunk)
    noise, batches = (SeedStreams([0], name, device) for name in ("learner", "batches"))
    learner = resolve("learners", args.algo)().build(
        spec, random=noise, updates=1_000_000, device=device
    )

    def updates(count: int) -> None:
        totals: dict[str, torch.Tensor] = {}
        for _ in range(count):
            add_metrics(totals, learner.update(replay.sample(args.batch, random=batches)))

    return {"updates": updates}, {"torch": torch.__version__}


@contextmanager
def capped_group(parent: Path | None, limit: int) -> Iterator[Path]:
    """A control group that grants `limit` bytes, removed afterwards. SystemExit if not allowed."""
    folder = (parent or own_group()) / f"offdiff-mapped-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        raise SystemExit(f"cannot make the control group {folder}: {error}; see --help") from error
    try:
        limit_file(folder, "memory.max", "memory.limit_in_bytes").write_text(str(limit))
        yield folder
    finally:
        folder.rmdir()


def own_group() -> Path:
    """The memory control group of this process under cgroup v1."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory") / path.lstrip("/")
    raise SystemExit("no cgroup v1 memory controller here; give an empty v2 group with --cgroup")


def limit_file(group: Path, v2: str, v1: str) -> Path:
    """A file of the group, by its name in cgroup v2 or v1."""
    return group / v2 if (group / v2).exists() else group / v1


def write_data(path: Path, rows: int) -> None:
    """The mapped store, none of it left in the page cache."""
    from offdiff.core.types import Spec
    from offdiff.data.mapped import write_rows

    write_rows(path, made_up(rows), rows, Spec(OBS, ACTION))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes(worker: Worker) -> int:
    """Bytes that a process has fetched from the disk."""
    text = Path(f"/proc/{worker.pid}/io").read_text()
    return int(dict(line.split(": ") for line in text.splitlines())["read_bytes"])


def compare(args: argparse.Namespace, file: Path, group: Path, rows: int) -> dict[str, Any]:
    """Runs both workers in turns; gives the measurements."""
    command = [
        sys.executable, __file__, "--algo", args.algo, "--batch", str(args.batch),
        "--file", str(file), "--rows", str(rows), "--cores", *map(str, args.cores),
    ]  # fmt: skip
    mapped_command = [*command, "--worker", "mapped", "--cgroup", str(group)]
    with Worker([*command, "--worker", "memory"]) as memory, Worker(mapped_command) as mapped:
        for worker in (memory, mapped):
            worker.run("updates", args.block)
        pairs: list[tuple[Block, Block]] = []
        before = read_bytes(mapped)
        for _ in range(args.pairs):
            pairs.append((memory.run("updates", args.block), mapped.run("updates", args.block)))
            print(f"{pairs[-1][1].wall / pairs[-1][0].wall:.2f}", end=" ", flush=True)
        print()
        fetched = read_bytes(mapped) - before
        peak = limit_file(group, "memory.peak", "memory.max_usage_in_bytes").read_text()
        about = mapped.about
    return {
        "ratio": summary([theirs.wall / ours.wall for ours, theirs in pairs]),
        "milliseconds_per_update": {
            "memory": summary([1e3 * block.wall / args.block for block, _ in pairs]),
            "mapped": summary([1e3 * block.wall / args.block for _, block in pairs]),
        },
        "bytes_read_per_update": fetched / (args.pairs * args.block),
        "peak_bytes_charged": int(peak),
        "seconds_of_blocks": [[ours.wall, theirs.wall] for ours, theirs in pairs],
        **about,
    }


def readme(folder: Path) -> str:
    """The table of all records in the folder."""
    lines = [
        "# Training from disk",
        "",
        "Made by `benchmarks/mapped.py` from the records beside it; how it is measured stands",
        "there. The ratio is mapped over in-memory time per update, median [p10, p90] over pairs.",
        "",
        "| learner | batch | cores | cap | data | in memory | mapped | ratio | pairs "
        "| read per update |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(folder.glob("*.json")):
        r = json.loads(path.read_text())
        ms, ratio = r["milliseconds_per_update"], r["ratio"]
        cap, data = (f"{r[name] / 2**20:.0f} MiB" for name in ("cap_bytes", "data_bytes"))
        memory, mapped = (f"{ms[name]['median']:.1f} ms" for name in ("memory", "mapped"))
        lines.append(
            f"| {r['algo']} | {r['batch']} | {r['cores']} | {cap} | {data} | {memory} | {mapped} "
            f"| **{ratio['median']:.2f}** [{ratio['p10']:.2f}, {ratio['p90']:.2f}] "
            f"| {len(r['seconds_of_blocks'])} x {r['updates_per_block']} updates "
            f"| {r['bytes_read_per_update'] / 1e3:.0f} kB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algo", default="iql", help="learner (default iql)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--cap-mib", type=int, default=512, help="granted to the mapped worker")
    parser.add_argument("--cores", type=int, nargs="+", default=[0], help="core numbers, for both")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument(
        "--block", type=int, default=1092, help="updates per turn: one look-ahead of the store"
    )
    parser.add_argument("--cgroup", type=Path, help="control group to make the capped one in")
    parser.add_argument("--disk", type=Path, default=Path("."), help="folder on the disk to use")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--worker", choices=("memory", "mapped"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        serve(lambda: work(args))
        return

    from offdiff.core.files import write_text

    # An end by SIGTERM must not leave the control group and the data behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cap = args.cap_mib * 2**20
    rows = TIMES_THE_CAP * cap // ROW_BYTES
    with (
        tempfile.TemporaryDirectory(dir=args.disk) as name,
        capped_group(args.cgroup, cap) as group,
    ):
        file = Path(name) / "rows.npy"
        write_data(file, rows)
        record = {
            "what": "time per update of memory-mapped training against in-memory training",
            "algo": args.algo,
            "batch": args.batch,
            "cores": len(args.cores),
            "cpu": cpu_name(),
            "cap_bytes": cap,
            "data_bytes": file.stat().st_size,
            "updates_per_block": args.block,
            **compare(args, file, group, rows),
        }
    write_text(
        args.out / f"{args.algo}-{len(args.cores)}-core.json", json.dumps(record, indent=1) + "\n"
    )
    write_text(args.out / "README.md", readme(args.out))
    print(readme(args.out))


if __name__ == "__main__":
    main()
