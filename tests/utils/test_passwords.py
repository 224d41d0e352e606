"""Passwords in storage URLs are replaced in all output and in the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from urllib.parse import quote, unquote

import pytest
import sqlalchemy
from hypothesis import example, given
from hypothesis import strategies as st
from in_process import call

from fmnist.config.study import StudyConfig
from fmnist.tuning import storage, storage_errors
from fmnist.utils import command_line
from fmnist.utils.errors import UserError
from fmnist.utils.passwords import hide, hide_arguments, of_arguments, starred, starred_text
from fmnist.view import servers

URLS = [
    "postgresql://me:hush-9a@host/db",
    "postgresql+psycopg://me@corp:hush-9a@host:5432/db",
    "postgresql://me:hush-9a /?#@host/db",
    "postgresql://:hush-9a@host/db",
    "mysql://host/db?user=me&password=hush-9a&x=1",
    "mysql://host/db?ssl_passphrase=hush-9a",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7BX+1%7D%3BUID%3Dme%3BPWD%3Dhush-9a%3BX%3D1",
    "mssql+pyodbc:///?odbc_connect=PWD={hush-9a;};UID=me",
    "mssql+pyodbc:///?odbc_connect=UID=me; Password=hush-9a",
]


@pytest.mark.parametrize("url", URLS)
def test_passwords_in_a_url_are_replaced(url):
    assert "hush" not in starred(url)
    assert "***" in starred(url)
    secret = next(s for s in ("hush-9a /?#", "hush-9a") if s in url)
    assert "hush" not in hide(f"it says: {url}; {secret}; {quote(url, safe='')}", url)
    if " " not in url.replace("; ", ""):
        text = f"first\n  --storage={url}\nlast"
        assert "hush" not in starred_text(text)
        assert starred_text(text).startswith("first\n  --storage=m" if url[0] == "m" else "first")


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///a:b@c/study.db",
        "sqlite:////tmp/100%/study.db",
        "postgresql://me@host/db?sslmode=require",
        "http://127.0.0.1:6006/",
        "--set name=bypass=3",
    ],
)
def test_text_without_a_password_is_unchanged(text):
    assert starred(text) == starred_text(text) == text


@given(st.text(min_size=1).filter(lambda secret: secret != "***"))
def test_passwords_are_not_shown(secret):
    url = sqlalchemy.URL.create(
        "mysql", username="u", password=secret, host="h", query={"ssl_password": secret}
    ).render_as_string(hide_password=False)
    said = hide(f"before [{secret}] {url} after", url)
    assert f"[{secret}]" not in said
    assert url not in said


words = st.text(st.characters(codec="utf-8", exclude_characters="@", min_codepoint=32), min_size=1)


@given(words.map(lambda w: f"<{w}>"), st.sampled_from(["me", "me@corp", "m\xe9", ""]))
@example("<a@b>", "me")
def test_a_raw_password_is_not_shown(secret, user):
    """A password that is not quoted, which SQLAlchemy may misread."""
    url = f"postgresql://{user}:{secret}@host/db"
    assert secret not in starred(url)
    error = RuntimeError(f"cannot log in with {secret} as {user}")
    assert secret not in storage_errors.describe(error, url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush-9a@host:54a2/db",
        "postgresql://me:hush-{9a}@host/db",
        "postgresql://me:hush-{}@host/db",
        "postgresql://me:hush-{@host/db",
        "me:hush-9a@host",
        "hush-9a",
        "redis://me:hush-9a@host/0",
        "mysql://me:hush-9a@host/0",
        "postgresql+psycopg://me:hush@-9a@127.0.0.1:1/db",
    ],
)
def test_unusable_url_gives_one_line_without_its_password(url):
    config = StudyConfig(name="x", epochs=1, grid={"seed": (0,)})
    with pytest.raises(UserError, match="storage") as caught:
        storage.open_study(config, url)
    assert "9a" not in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stored_command_has_no_password():
    argv = ["--set", "name=a@b", "--storage", "postgresql://me:hush 9a@host/db", "--quiet"]
    kept = command_line.command("fmnist.study", map(starred, argv))
    assert kept == (
        "python -m fmnist.study --set name=a@b --storage 'postgresql://me:***@host/db' --quiet"
    )
    assert of_arguments([*argv, f"--storage={argv[3]}"]) == [argv[3]] * 2


@pytest.mark.parametrize("secret", ["hush 9a", "h\xe0 9a", "\u5bc6\u7801", "h@9a"])
def test_command_line_of_the_process_has_no_password(secret):
    script = (
        "from pathlib import Path; import sys; from fmnist.utils import passwords\n"
        "passwords.cover_arguments()\n"
        "sys.stdout.buffer.write(Path('/proc/self/cmdline').read_bytes())"
    )
    url = f"postgresql://me@corp:{secret}@host/db"
    for arguments in (["--storage", url], [f"--storage={url}"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments, "last"],
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONUTF8": "1"},
        )
        expected = os.fsencode(url).replace(secret.encode(), b"*" * len(secret.encode()))
        assert expected in done.stdout
        assert done.stdout.endswith(b"\0last\0")


SPECIAL = [
    "postgresql://m?e:hush-9a@host/db",
    "postgresql://m#e:hush-9a@host/db",
    "postgresql://m e:hush-9a@host/db",
    "mysql://host:3306/db?password=hush-9a@hush-9a",
    "mysql://host/db?%70assword=hush-9a&x=1",
    "mssql+pyodbc:///?odbc_connect=PWD={hush-9a}};hush-9a};UID=me",
    "mssql+pyodbc:///?odbc_connect=PWD%3D%7Bhush-9a%7D%7D%3Bhush-9a%7D%3BUID%3Dme",
    "mssql+pyodbc:///?odbc_connect=PWD={hush-9a&hush-9a}",
    "postgresql:///db?dsn=host%3Dx%20password%3Dhush-9a%20user%3Dme",
    "postgresql:///db?options=-c%20password%3D'hush-9a'",
]


@pytest.mark.parametrize("url", SPECIAL)
def test_passwords_in_other_spellings_are_replaced(url):
    assert "hush" not in starred(url)
    secret = "hush-9a};hush-9a" if "}" in unquote(url) else "hush-9a"
    secret = "hush-9a&hush-9a" if "&hush" in url else secret
    assert "hush" not in hide(f"{url}; it is {secret}, it is {quote(secret, safe='')}", url)
    if " " not in url:
        assert "hush" not in starred_text(f"say --storage={url} on")


def test_short_password_is_not_replaced_within_words():
    said = hide("a table of a and b: [a]", "postgresql://me:a@host/db")
    assert said == "*** table of *** and b: [***]"
    assert hide("cannot read study", "postgresql://me:d@host/db") == "cannot read study"


@pytest.mark.parametrize(
    "text",
    ["://" * 20_000, ";pwd={" * 10_000, "a" * 60_000, "?x=;pwd={" * 7_000, "://a:" + "b@" * 30_000,
     "x://u:p@h?odbc_connect=" + "PWD={" * 12_000],
)  # fmt: skip
def test_a_long_argument_takes_no_time(text):
    began = time.process_time()
    hide_arguments(text, [text])
    starred(text)
    assert time.process_time() - began < 2


URL = "postgresql://me:hush-9a@127.0.0.1:1/db"


@pytest.mark.parametrize(
    "args",
    [
        ["study", f"--storagge={URL}"],
        ["study", "--max-lanes", URL],
        ["study", "--epochs", URL],
        ["study", "--set", URL],
        ["study", "--set", f"name={URL}", "--set", "epochs=x"],
        ["study", "--device", URL],
        ["study", URL],
        ["view", URL],
        ["view", "--port-dashboard", URL],
        ["predict", URL],
        ["predict", "--batch", URL],
    ],
)
def test_url_in_place_of_another_argument_is_shown_without_its_password(args, tmp_path):
    done = call(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr
    assert "hush" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_braces_in_the_url_of_a_view_give_one_line():
    with pytest.raises(servers.ServerError, match="%7B") as caught:
        servers.open_storage("postgresql://me:hush-{part}@host/db")
    assert "hush" not in str(caught.value)
