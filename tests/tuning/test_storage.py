"""Which storages a study may have."""

from __future__ import annotations

import optuna
import pytest
import sqlalchemy
from in_process import call

from fmnist.config.study import StudyConfig
from fmnist.tuning.storage import open_study
from fmnist.utils.errors import UserError

FLEETING = [
    "sqlite://",
    "sqlite:///",
    "sqlite:///:memory:",
    "sqlite+pysqlite://",
    "sqlite+pysqlite:///:memory:",
    "sqlite:///file::memory:?uri=true",
    "sqlite:///file::memory:?cache=shared&uri=true",
    "sqlite:///file:study?mode=memory&cache=shared&uri=true",
    "sqlite:///file:/study?vfs=memdb&uri=true",
    "sqlite:///file:?uri=true",
]


@pytest.mark.parametrize("url", FLEETING)
def test_database_that_is_no_file_is_refused(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="lost when the command ends; name a file"):
        open_study(StudyConfig(grid={"seed": (0, 1)}), url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("sliced")
def test_database_that_is_no_file_gives_one_line(tmp_path):
    done = call("study", "--storage", "sqlite://", "--out", "run", cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line[:40]) == (2, "error: --storage is a database that is l")


@pytest.mark.parametrize(
    "url", ["sqlite:///study.db", "sqlite:///file:study.db?uri=true", "sqlite:///{here}/study.db"]
)
def test_database_that_is_a_file_is_accepted(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    config = StudyConfig(grid={"seed": (0, 1)})
    for _ in range(2):
        open_study(config, url.format(here=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


def test_kill_while_the_tables_are_created_leaves_no_second_study(tmp_path):
    """After each statement that creates a table or an index. SQLite keeps those before it."""

    class Killed(BaseException):
        pass

    def stop_after(statements):
        def count(_connection, _cursor, statement, *_):
            nonlocal statements
            if statement.lstrip().startswith("CREATE"):
                statements -= 1
            if statements < 0:
                raise Killed

        return count

    config, number = StudyConfig(), 0
    while True:
        url = f"sqlite:///{tmp_path}/{number}.db"
        hook = stop_after(number)
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", hook)
        try:
            open_study(config, url)
        except Killed:
            killed = True
        else:
            killed = False
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", hook)
        for _ in range(2):
            assert open_study(config, url).study_name == config.name
        assert optuna.get_all_study_names(url) == [config.name]
        if not killed:
            break
        number += 1
    assert number > 10
