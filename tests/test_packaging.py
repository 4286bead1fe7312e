"""What is built, installed and imported is what the tree holds."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

import offdiff

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = PROJECT["tool"]["setuptools"]["package-dir"]
MEGABYTE = 1_000_000

LIGHT = {"docstring_parser", "rich", "shtab", "typeguard", "typing_extensions", "tyro"}
"""Other people's packages that `offdiff --help` may import: those of the command line itself."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the tree by its name, the linked folders by their links."""
    for path in sorted([*ROOT.glob("offdiff/**/*.py"), *(ROOT / "offdiff").glob("*/*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


MODULES = dict(modules())


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_list_is_the_tree() -> None:
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


@pytest.mark.parametrize("package", MAPPED)
def test_links_point_to_the_folders_that_are_packaged(package: str) -> None:
    link = ROOT / package.replace(".", "/")
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{MAPPED[package]}"
    assert link.samefile(ROOT / MAPPED[package])


@pytest.mark.parametrize("name", [name for name in MODULES if name != "offdiff.__main__"])
def test_every_module_imports_and_says_what_it_is(name: str) -> None:
    assert importlib.import_module(name).__doc__


def imported_by(code: str) -> set[str]:
    """Top-level modules in memory after `code` ran in a fresh interpreter."""
    show = "import sys, json; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    out = run(sys.executable, "-c", f"{code}\n{show}", cwd=ROOT)
    return set(json.loads(out.splitlines()[-1])) - set(sys.stdlib_module_names)


def foreign(names: set[str]) -> set[str]:
    """Those that an installed package other than ours brings."""
    return {n for n in names if n in packages_distributions()} - {"offdiff"}


def test_the_package_imports_nothing_until_a_name_is_used() -> None:
    assert foreign(imported_by("import offdiff")) <= imported_by("")
    assert "torch" in imported_by("import offdiff; offdiff.ReplayBuffer")


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["data", "--help"], ["runn"]])
def test_the_command_line_stays_light(args: list[str]) -> None:
    before = imported_by("")
    assert foreign(imported_by(f"import offdiff.cli; offdiff.cli.main({args})") - before) <= LIGHT


def test_no_optional_package_is_imported_by_importing_modules() -> None:
    """They are imported where they are used: the base install imports every module."""
    optional = {"minari", "stable_baselines3", "sb3_contrib", "gymnasium_robotics", "wandb"}
    optional |= {"tensorboard", "imageio", "onnx", "onnxruntime", "onnxscript", "pandas"}
    names = [name for name in MODULES if name != "offdiff.__main__"]
    everything = "\n".join(f"import {name}" for name in names)
    assert not imported_by(everything) & optional


def declared(requirements: list[str]) -> set[str]:
    return {
        re.split(r"[\[<>=;~! ]", requirement)[0].lower().replace("_", "-")
        for requirement in requirements
    }


def test_every_import_is_declared_and_every_dependency_imported() -> None:
    project = PROJECT["project"]
    extras = {k: v for k, v in project["optional-dependencies"].items() if k not in ("dev", "all")}
    base = declared(project["dependencies"])
    known = base.union(*(declared(requirements) for requirements in extras.values()))
    of_module = {
        module: {d.lower().replace("_", "-") for d in distributions}
        for module, distributions in packages_distributions().items()
    }
    used = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module.split(".")[0])
    used -= {*sys.stdlib_module_names, "offdiff"}
    undeclared = {module for module in used if not of_module.get(module, {module}) & known}
    assert not undeclared
    needless = base - {d for module in used for d in of_module.get(module, {module})}
    assert needless <= {"mujoco"}  # behind gymnasium; declared for its upper bound


def test_names_resolve_and_hide_no_module() -> None:
    for name in offdiff.__all__:
        assert getattr(offdiff, name) is not None
    importlib.import_module("offdiff.run")
    importlib.import_module("offdiff.evaluate")
    assert callable(offdiff.run)
    assert callable(offdiff.evaluate)
    assert sys.modules["offdiff.run"].run is offdiff.run
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = offdiff.nothing  # type: ignore[attr-defined]  # the point of the test


def test_python_m_is_the_command(tmp_path: Path) -> None:
    out = run(sys.executable, "-m", "offdiff", "--version", cwd=tmp_path)
    assert out == f"offdiff {offdiff.__version__}\n"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, for builds leave things behind."""
    target = tmp_path_factory.mktemp("build") / "source"
    ignored = shutil.ignore_patterns(".*", "results", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, target, symlinks=True, ignore=ignored)
    return target


@pytest.fixture(scope="session")
def wheel(source: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    run(*pip, "-q", "-w", source / "wheels", cwd=source)
    (built,) = (source / "wheels").glob("*.whl")
    return built


def expected_files() -> set[str]:
    data = {"offdiff/py.typed", "offdiff/data/d4rl_scores.csv", "offdiff/data/hopper_sample.hdf5"}
    tables = {f"offdiff/algos/{path.name}" for path in (ROOT / "algos").glob("*.csv")}
    for kind in ("grids/*.toml", "reference/*.csv", "report_page/*"):
        data |= {str(path.relative_to(ROOT)) for path in (ROOT / "offdiff").glob(kind)}
    return data | tables | {str(path.relative_to(ROOT)) for path in MODULES.values()}


def test_the_wheel_holds_everything_and_only_offdiff(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        entry_points = archive.read(f"offdiff-{offdiff.__version__}.dist-info/entry_points.txt")
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == expected_files()
    assert {name.split("/")[0] for name in inside} == {"offdiff"}
    assert b"iql = offdiff.algos.iql:IQLConfig" in entry_points
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < 8 * MEGABYTE


def test_the_wheel_works_without_the_tree(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, 'site'); import offdiff\n"
        "assert 'site' in offdiff.__file__, offdiff.__file__\n"
        "print(offdiff.load_dataset('sample').episodes.n_episodes)"
    )
    assert int(run(sys.executable, "-c", code, cwd=tmp_path)) > 0


def test_the_source_distribution_builds_the_same_wheel(source: Path, wheel: Path) -> None:
    dist = source / "sdist"
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist]
    run(*build, cwd=source)  # makes the sdist, then a wheel out of it
    (sdist,) = dist.glob("*.tar.gz")
    (rebuilt,) = dist.glob("*.whl")
    assert sdist.stat().st_size < 8 * MEGABYTE
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[0] for name in archive.getnames()}
    assert tops == {f"offdiff-{offdiff.__version__}"}
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(rebuilt) as other:
        assert set(one.namelist()) == set(other.namelist())


def test_constraints_lie_in_the_declared_ranges() -> None:
    """And name every package that is declared."""
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {
        requirement.name: next(iter(requirement.specifier)).version
        for requirement in map(Requirement, (x for x in lines if x and not x.startswith("#")))
    }
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    for requirement in map(Requirement, chain(project["dependencies"], *extras)):
        if requirement.name != "offdiff":
            assert requirement.specifier.contains(tested[requirement.name]), requirement
