"""``python -m fmnist.view``: real servers, real signals, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from fake_results import results_of
from in_process import call
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from fmnist.config.study import StudyConfig
from fmnist.reports.tensorboard.mirror import TensorBoardMirror
from fmnist.tuning import grid, storage
from fmnist.utils import interpreter
from fmnist.view import command as view
from fmnist.view import servers

STUDY = StudyConfig(name="seen", epochs=2, grid={"seed": (0, 1)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two made-up trials."""
    out = tmp_path_factory.mktemp("run") / "a run"
    out.mkdir()
    study = storage.open_study(STUDY, f"sqlite:///{out / 'study.db'}")
    with TensorBoardMirror(out / "tensorboard", STUDY) as mirror:
        for trial, result in zip(grid.pending(study, STUDY), results_of(STUDY), strict=True):
            grid.begin([trial])
            grid.tell(study, trial, result, STUDY)
            mirror.finish(result)
    return out


def command(*args):
    return [sys.executable, "-m", "fmnist.view", *map(str, args)]


@contextlib.contextmanager
def viewing(*args):
    """Start the command. Yield its process and the addresses of both servers."""
    with subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as viewer:
        try:
            said = ""
            for line in iter(viewer.stdout.readline, ""):
                said += line
                if "Ctrl-C" in line:
                    break
            yield viewer, re.findall(r"http://127\.0\.0\.1:\d+/", said)
        finally:
            if viewer.poll() is None:
                viewer.kill()


def get(address):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(address, timeout=20) as reply:
        return reply.read()


def listens(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def below(process):
    """Return the ids of all descendants of a process, from /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, grown = {process}, True
    while grown:
        grown = {child for child, parent in parents.items() if parent in found} - found
        found |= grown
    return found - {process}


def alive(process):
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def all_end(processes, addresses, seconds=15):
    """Whether the processes end and their ports close, which takes a moment longer."""

    def some():
        return any(map(alive, processes)) or any(map(listens, addresses))

    until = time.monotonic() + seconds
    while some() and time.monotonic() < until:
        time.sleep(0.1)
    return not some()


def test_both_servers_answer_until_ctrl_c(run):
    with viewing(run) as (viewer, addresses):
        board, dashboard = addresses
        assert len(json.loads(get(f"{board}data/plugin/scalars/tags"))) == 2
        assert b"TensorBoard" in get(board)
        (study,) = json.loads(get(f"{dashboard}api/studies"))["study_summaries"]
        assert study["study_name"] == "seen"
        assert json.loads(get(f"{dashboard}api/meta"))["artifact_is_available"]
        assert (run / "artifacts").is_dir()
        started = below(viewer.pid)
        assert len(started) >= 2
        viewer.send_signal(signal.SIGINT)
        _, said = viewer.communicate(timeout=20)
        assert (viewer.returncode, said) == (130, "")
        assert all_end(started, addresses)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_every_signal_ends_both_servers(run, number, status):
    with viewing(run) as (viewer, addresses):
        started = below(viewer.pid)
        viewer.send_signal(number)
        _, said = viewer.communicate(timeout=20)
        assert (viewer.returncode, said) == (status, "")
        assert all_end(started, addresses)


def test_death_of_a_server_is_reported_and_ends_the_other(run):
    with viewing(run) as (viewer, addresses):
        started = below(viewer.pid)
        (victim,) = [p for p in started if parent_of(p) == viewer.pid and serves(p, addresses[1])]
        os.kill(victim, signal.SIGKILL)
        _, said = viewer.communicate(timeout=20)
        assert viewer.returncode == 1
        assert said == (
            "error: optuna-dashboard was ended by signal 9; the other one is ended, too\n"
        )
        assert all_end(started, addresses)


def parent_of(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def serves(process, address):
    """Whether a process listens on this port."""
    port = f"{int(address.rstrip('/').rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[1].endswith(f":{port}") and row[3] == "0A"}
    held = [link.readlink() for link in Path(f"/proc/{process}/fd").iterdir()]
    return any(str(link) == f"socket:[{inode}]" for link in held for inode in inodes)


def refused(*args, cwd="."):
    done = call("view", *args, cwd=cwd)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_folder_without_a_run_is_refused_without_changes(tmp_path):
    assert "there is no run in the folder runs" in refused(cwd=tmp_path)
    assert "there is no run" in refused(tmp_path)
    assert "nowhere: there is no run" in refused("nowhere", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "baseline" / "tensorboard").mkdir(parents=True)
    said = refused("runs/baselin", cwd=tmp_path)
    assert said.endswith("(it has no folder tensorboard); did you mean runs/baseline?\n")


def test_unusable_storages_and_ports_are_refused(run, tmp_path):
    missing = tmp_path / "none.db"
    assert "there is no file" in refused(run, "--storage", f"sqlite:///{missing}")
    assert not missing.exists()
    (tmp_path / "empty.db").write_bytes(b"")
    assert "no such table" in refused(run, "--storage", f"sqlite:///{tmp_path / 'empty.db'}")
    for url in ("nonsense://me:hush@nowhere/db", "mysql://me:hush@127.0.0.1:1/db?password=hush",
                "hush", "://hush"):  # fmt: skip
        said = refused(run, "--storage", url)
        assert "hush" not in said
        assert "cannot be used" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refused(run, "--port-dashboard", port)
        assert str(port) in refused(run, "--port-tensorboard", port)


def test_ports_can_be_chosen(run):
    with socket.create_server(("127.0.0.1", 0)) as one:
        chosen = one.getsockname()[1]
    with viewing(run, "--port-dashboard", chosen) as (viewer, addresses):
        assert addresses[1] == f"http://127.0.0.1:{chosen}/"
        viewer.terminate()


def listening(processes):
    """Return the addresses, in hexadecimal, on which these processes listen."""
    mine = set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                mine.update(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in mine]


def test_servers_listen_on_127_0_0_1_only(run):
    with viewing(run) as (viewer, addresses):
        assert len(addresses) == 2
        found = listening(below(viewer.pid))  # TensorBoard has one for its data, too
        assert len(found) >= 2
        assert set(found) == {"0100007F"}  # 127.0.0.1
        viewer.terminate()


def test_storage_elsewhere_is_shown_without_its_url_in_command_lines(run, tmp_path):
    elsewhere = tmp_path / "hush-hush.db"
    shutil.copy(run / "study.db", elsewhere)
    with viewing(run, "--storage", f"sqlite:///{elsewhere}") as (viewer, addresses):
        assert json.loads(get(f"{addresses[1]}api/studies"))["study_summaries"]
        lines = [Path(f"/proc/{child}/cmdline").read_bytes() for child in below(viewer.pid)]
        assert len(lines) >= 2
        assert not any(b"hush" in line for line in lines)
        viewer.terminate()


WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from fmnist.utils import command_line
from fmnist.view import command
command_line.run(command.main)
"""


@pytest.mark.parametrize(
    ("library", "name", "other"),
    [
        ("optuna_dashboard", "optuna-dashboard", "TensorBoard"),
        ("tensorboard", "tensorboard", "optuna-dashboard"),
    ],
)
def test_what_is_installed_is_shown_and_what_is_not_is_said(run, library, name, other):
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT, library, str(run)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as viewer:  # fmt: skip
        said = [viewer.stdout.readline() for _ in range(3)]
        viewer.send_signal(signal.SIGINT)
        _, missing = viewer.communicate(timeout=20)
    assert said[0] == f"starting {other} for {run}\n"
    assert re.fullmatch(rf"{other} +http://127\.0\.0\.1:\d+/\n", said[1])
    assert said[2] == "Ctrl-C ends it.\n"
    (line,) = missing.splitlines()
    assert line.startswith(f"{name} is not installed for ")
    if library == "optuna_dashboard":
        assert line.endswith("; to install it: " + interpreter.install(name))


def test_several_runs_have_their_names_in_tensorboard_and_a_dashboard_each(run, tmp_path):
    """One has no study.db, as those of the reference; two have the same name."""
    runs = [run, tmp_path / "other" / run.name, tmp_path / "bare"]
    for copy in runs[1:]:
        shutil.copytree(run, copy)
    (runs[2] / "study.db").unlink()
    with viewing(*runs, run) as (viewer, addresses):
        board, *dashboards = addresses
        assert len(dashboards) == 2
        until, found = time.monotonic() + 60, set()
        names = {"a run", "a run (2)", "bare"}
        while found != names and time.monotonic() < until:  # it reads them one after the other
            found = {name.partition("/")[0] for name in json.loads(get(f"{board}data/runs"))}
        assert found == names
        for address in dashboards:
            assert len(json.loads(get(f"{address}api/studies"))["study_summaries"]) == 1
        viewer.send_signal(signal.SIGINT)
        _, said = viewer.communicate(timeout=20)
    (line,) = said.splitlines()
    assert line.startswith(f"{runs[2]}: has no study.db, so optuna-dashboard does not show it")


def test_one_storage_of_several_runs_has_one_dashboard_with_the_files_of_all(run, tmp_path):
    folders = [shutil.copytree(run, tmp_path / name) for name in ("one", "two")]
    orders = view._dashboards(view.distinct(folders), "sqlite:///all.db", 8080)
    artifacts = [str(folder / "artifacts") for folder in folders]
    storage = {"storage": "sqlite:///all.db", "artifacts": artifacts, "port": 8080}
    assert orders == {"optuna-dashboard": storage}
    for folder in folders:
        (folder / "artifacts" / folder.name).write_text(folder.name)
    stores = servers._Stores([FileSystemArtifactStore(folder) for folder in artifacts])
    for name in ("one", "two"):
        with stores.open_reader(name) as reader:
            assert reader.read() == name.encode()
    stores.write("three", io.BytesIO(b"3"))
    assert (folders[0] / "artifacts" / "three").read_bytes() == b"3"
    stores.remove("two")
    with pytest.raises(ArtifactNotFound):
        stores.open_reader("two")
