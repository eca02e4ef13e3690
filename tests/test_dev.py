"""What the script `dev` promises before any Python of ours runs.

Each test works on a copy of the script in a folder of its own, with a PATH that holds only what a
bare machine has, so that nothing is ever installed.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BARE_PROGRAMS = [
    "sh",
    "dirname",
    "pwd",
    "cat",
    "sha256sum",
    "awk",
    "sed",
    "tail",
    "head",
    "grep",
    "mkdir",
    "rm",
    "flock",
    "env",
]
PACKAGED_PROGRAMS = [
    "qemu-img",
    "qemu-system-x86_64",
    "nbdkit",
    "nbdinfo",
    "mkfs.ext4",
    "mariadbd",
    "my_print_defaults",
    "cc",
    "gencat",
]
PACKAGES = {
    "qemu-utils",
    "qemu-system-x86",
    "nbdkit",
    "libnbd-bin",
    "e2fsprogs",
    "mariadb-server-core",
    "mariadb-client-core",
    "gcc",
    "libc6-dev",
    "postgresql",
}


def write_program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return a folder of programs like a bare machine's; the user is a plain one without sudo."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in BARE_PROGRAMS:
        place = shutil.which(name)
        assert place is not None, f"{name} is missing here"
        (programs / name).symlink_to(place)
    write_program(programs / "id", "echo 1000")
    write_program(programs / "apt-get", "echo nobody may call this; exit 9")
    write_program(programs / "python3", f'exec "{sys.executable}" "$@"')
    return programs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of what the script reads, under a path with a space.

    What it looks for at fixed places of the machine, it looks for in the test's folder.
    """
    folder = tmp_path / "a project"
    (folder / "requirements").mkdir(parents=True)
    for name in ["dev", "pyproject.toml", "requirements/dev.txt"]:
        shutil.copy2(ROOT / name, folder / name)
    script = (folder / "dev").read_text()
    for place in ("/usr/sbin:/sbin", "/usr/lib/postgresql", "/etc/postgresql-common"):
        assert place in script
        script = script.replace(place, f"{tmp_path}{place.partition(':')[0]}")
    (folder / "dev").write_text(script)
    return folder


def install_packages(machine: Path) -> None:
    for name in PACKAGED_PROGRAMS:
        write_program(machine / name, "exit 0")
    write_program(machine.parent / "usr/lib/postgresql/15/bin/initdb", "exit 0")


def make_environment(tree: Path) -> None:
    """Make what a finished `.venv` looks like, with a `just` that shows its arguments."""
    programs = tree / ".venv" / "bin"
    write_program(programs / "python", f'exec "{sys.executable}" "$@"')
    write_program(programs / "uv", "exit 0")
    write_program(programs / "just", 'printf "<%s>\\n" "$@"; exit 7')
    sums = subprocess.run(
        ["sha256sum", "requirements/dev.txt", "pyproject.toml"],
        cwd=tree,
        check=True,
        capture_output=True,
        text=True,
    )
    (tree / ".venv" / "sendense-stamp").write_text(f"{tree.resolve()}\n{sums.stdout}")


def run(
    tree: Path, machine: Path, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tree / "dev", *arguments],
        env={"PATH": str(machine), "HOME": str(tree)},
        cwd=cwd or tree,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_user_who_may_not_install_is_told_exactly_what_to_run(tree: Path, machine: Path) -> None:
    outcome = run(tree, machine, "test")
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    command = outcome.stderr.splitlines()[-1].strip()
    assert command.startswith("apt-get update && apt-get install --yes --no-install-recommends ")
    packages = set(command.split("--no-install-recommends ")[1].split())
    assert packages == {"--no-remove", *PACKAGES}
    assert "create_main_cluster = false" in outcome.stderr
    assert not (tree / ".venv").exists()


@pytest.mark.parametrize("status", [0, 5])
def test_installing_postgresql_makes_no_cluster_and_leaves_no_trace(
    tree: Path, machine: Path, tmp_path: Path, status: int
) -> None:
    install_packages(machine)
    make_environment(tree)
    initdb = tmp_path / "usr/lib/postgresql/15/bin/initdb"
    initdb.rename(tmp_path / "packed")
    for name in ("tee", "mv"):
        (machine / name).symlink_to(shutil.which(name) or "")
    write_program(machine / "id", "echo 0")
    settings = tmp_path / "etc/postgresql-common/createcluster.d"
    unpack = f"mv '{tmp_path}/packed' '{initdb}'" if status == 0 else ""
    write_program(
        machine / "apt-get",
        f"""case "$*" in
update*) ;;
*' postgresql')
    cat '{settings}'/* >'{tmp_path}/seen'
    {unpack}
    exit {status} ;;
*) exit 9 ;;
esac""",
    )
    outcome = run(tree, machine, "test")
    assert outcome.returncode == (7 if status == 0 else 1), outcome.stderr
    assert (tmp_path / "seen").read_text() == "create_main_cluster = false\n"
    assert list(settings.iterdir()) == []


def test_arguments_and_status_pass_through_unchanged(
    tree: Path, machine: Path, tmp_path: Path
) -> None:
    install_packages(machine)
    make_environment(tree)
    outcome = run(tree, machine, "test", "-k", "a b", "", "$HOME *", cwd=tmp_path)
    assert outcome.returncode == 7
    assert outcome.stdout.splitlines() == ["<test>", "<-k>", "<a b>", "<>", "<$HOME *>"]
    assert outcome.stderr == ""


@pytest.mark.parametrize("damage", ["no stamp", "older lock", "moved", "no python"])
def test_an_environment_that_is_not_whole_is_made_again(
    tree: Path, machine: Path, damage: str
) -> None:
    install_packages(machine)
    make_environment(tree)
    stamp = tree / ".venv" / "sendense-stamp"
    if damage == "no stamp":
        stamp.unlink()
    elif damage == "older lock":
        with (tree / "requirements" / "dev.txt").open("a") as lock:
            lock.write("# newer\n")
    elif damage == "moved":
        stamp.write_text("/elsewhere\n" + stamp.read_text().partition("\n")[2])
    else:
        (tree / ".venv" / "bin" / "python").unlink()
    # Making it would need the network, so the maker only says that it was asked and fails.
    refusal = 'case "$*" in "-m venv"*|"-m pip install"*) echo "asked: $*" >&2; exit 3;; esac'
    for place in [machine / "python3", tree / ".venv" / "bin" / "python"]:
        if place.exists():
            write_program(place, f'{refusal}\nexec "{sys.executable}" "$@"')
    for name in ["python3.11", "python3.12", "python3.13", "python3.14"]:
        write_program(machine / name, "exit 1")
    outcome = run(tree, machine, "test")
    assert outcome.returncode != 0
    # Only a newer lock can be applied to what is there; anything else starts from nothing.
    work = "-m pip install" if damage == "older lock" else "-m venv --clear .venv"
    assert f"asked: {work}" in outcome.stderr
    assert "<test>" not in outcome.stdout


def test_continuous_integration_runs_what_a_developer_runs() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-1] == "exec ./dev test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert os.access(ROOT / "dev", os.X_OK)
