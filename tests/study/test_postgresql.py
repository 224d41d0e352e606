"""A study in a real PostgreSQL: kills of the study and the server, and a hidden password."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import forked
import optuna
import pytest

HERE = Path(__file__).parents[1]
PASSWORD = "hush-3f7a"
PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path())

pytestmark = pytest.mark.skipif(
    not (PROGRAMS / "initdb").exists(), reason="Debian's package postgresql is not here"
)


class Server:
    """A PostgreSQL server for these tests, with a password."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        if os.getuid() == 0:  # PostgreSQL does not run as root
            shutil.chown(folder, "postgres")
            shutil.chown(secret, "postgres")
            folder.parent.chmod(0o711)
        data = ["-D", str(folder / "data")]
        self.run("initdb", *data, "-A", "scram-sha-256", "-U", "me", f"--pwfile={secret}")
        self.address = f"me:{PASSWORD}@127.0.0.1:{self.port}/postgres"
        self.url = f"postgresql+psycopg://{self.address}"

    def run(self, program: str, *args: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        with (self.folder.parent / "postgresql.log").open("a") as log:
            command = [*user, str(PROGRAMS / program), *args]
            subprocess.run(command, check=True, stdout=log, stderr=log, cwd="/")

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off"
        data = ["-D", str(self.folder / "data"), "-l", str(self.folder / "log")]
        self.run("pg_ctl", *data, "-w", "-o", options, "start")

    def kill(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")

    def dump(self) -> bytes:
        """Return the content of the database."""
        command = [PROGRAMS / "pg_dump", f"postgresql://{self.address}"]
        return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def server():
    """A server in a folder outside of pytest's, which can become unreadable for other users."""
    with tempfile.TemporaryDirectory(prefix="fmnist-postgresql-") as name:
        folder = Path(name) / "server"
        folder.mkdir()
        made = Server(folder)
        made.start()
        yield made
        made.kill()


def command(server, out, name, views=False):
    return [
        sys.executable, str(HERE / "slice_command.py"), "--storage", server.url, "--out", str(out),
        *([] if views else ["--no-views"]),
        "--epochs", "2", "--set", f"name={name}", "--set", "holdout=500",
        "--set", "batch_size=50,100", "--set", "learning_rate=0.01,0.001",
    ]  # fmt: skip


def results(out):
    with (out / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def states(server, name):
    storage = optuna.storages.RDBStorage(server.url)
    try:
        trials = optuna.load_study(study_name=name, storage=storage).trials
        return [trial.state.name for trial in trials]
    finally:
        storage.remove_session()
        storage.engine.dispose()


def begun(child, out):
    """Wait until one trial has finished."""
    until = time.monotonic() + 120
    while not list(out.glob("parameters/*.safetensors")):
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


def test_killed_study_continues_and_the_password_is_shown_nowhere(server, tmp_path):
    out = tmp_path / "run"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    given = command(server, out, "killed", views=True)
    with subprocess.Popen(given, **pipes) as child:
        begun(child, out)
        title = Path(f"/proc/{child.pid}/cmdline").read_bytes()
        child.send_signal(signal.SIGKILL)
        said = b"".join(child.communicate())
    done = subprocess.run(given, capture_output=True, timeout=300)
    said += done.stdout + done.stderr
    assert done.returncode == 0, said
    assert f"postgresql+psycopg://me:***@127.0.0.1:{server.port}".encode() in said
    assert states(server, "killed") == ["COMPLETE"] * 4
    alone = command(server, tmp_path / "alone", "killed", views=True)
    forked.run([*alone[:2], *alone[4:]], check=True, capture_output=True, timeout=300)
    assert results(out) == results(tmp_path / "alone")

    assert b"--storage" in title
    assert b"*" * len(PASSWORD) in title
    for text in (title, said, server.dump()):
        assert PASSWORD.encode() not in text
    left = [path for path in out.rglob("*") if path.is_file()]
    assert len(left) > 20
    assert [path for path in left if PASSWORD.encode() in path.read_bytes()] == []


def test_study_continues_after_the_server_dies(server, tmp_path):
    out = tmp_path / "run"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with forked.Popen([*command(server, out, "died"), "--wait", "1"], **pipes) as child:
        begun(child, out)
        server.kill()
        _, said = child.communicate(timeout=120)
    server.start()
    assert child.returncode == 2, said
    assert said.startswith("error: storage postgresql+psycopg://me:***@")
    assert len(said.splitlines()) == 1
    done = forked.run(command(server, out, "died"), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert states(server, "died") == ["COMPLETE"] * 4


def test_restart_of_the_server_is_waited_for(server, tmp_path):
    out = tmp_path / "run"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with forked.Popen(command(server, out, "restarted"), **pipes) as child:
        begun(child, out)
        server.kill()
        time.sleep(4)
        server.start()
        said, errors = child.communicate(timeout=300)
    assert (child.returncode, errors) == (0, "")
    (line,) = [line for line in said.splitlines() if "trying again" in line]
    assert line.startswith("storage postgresql+psycopg://me:***@")
    assert "that has passed" in said
    assert states(server, "restarted") == ["COMPLETE"] * 4


def test_closed_connections_are_reopened(server, tmp_path):
    """A firewall or a pooler also closes idle connections."""
    import psycopg

    out = tmp_path / "run"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    closed, slow = 0, ["--epochs", "6", "--set", "channels=16-32"]
    with (
        psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection,
        forked.Popen([*command(server, out, "closed"), *slow], **pipes) as child,
    ):
        begun(child, out)
        for _ in range(4):
            closed += connection.execute(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity "
                "where pid != pg_backend_pid() and state = 'idle' "
                "and state_change < clock_timestamp() - interval '100 ms'"  # between two uses
            ).fetchone()[0]
            time.sleep(1)
        _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert closed
    assert states(server, "closed") == ["COMPLETE"] * 4


def test_missing_rights_give_one_line_and_the_study_continues_later(server, tmp_path):
    """The rights are removed during training. Earlier results stay."""
    import psycopg

    out = tmp_path / "run"
    tables = ("trial_intermediate_values", "trials")
    with psycopg.connect(server.url.replace("+psycopg", "")) as connection:
        connection.execute("create role guest login password 'hush-guest'")
        connection.execute("grant all on all tables in schema public to guest")
        connection.execute("grant all on all sequences in schema public to guest")
        for table in tables:
            connection.execute(f"revoke insert, update on {table} from guest")
    given = [word.replace(f"me:{PASSWORD}@", "guest:hush-guest@")
             for word in command(server, out, "guest")]  # fmt: skip
    done = forked.run(given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert re.search("permission denied for table trial", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert "hush" not in done.stderr
    with psycopg.connect(server.url.replace("+psycopg", "")) as connection:
        for table in tables:
            connection.execute(f"grant all on {table} to guest")
    done = forked.run(given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert states(server, "guest") == ["COMPLETE"] * 4


def test_wrong_password_gives_one_line_without_the_password(server, tmp_path):
    given = command(server, tmp_path / "run", "wrong")
    wrong = [arg.replace(PASSWORD, "not-that-one") for arg in given]
    done = forked.run(wrong, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "password authentication failed" in done.stderr
    assert "not-that-one" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
