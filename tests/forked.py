"""Real processes of Python that start in a moment, because a process with the libraries forks them.

As in :mod:`subprocess`, for programs whose processes matter and whose start-up does not: those
that are killed, stopped or looked at from outside. What depends on the environment that libraries
see when they are loaded, on limits, or on the command line that others see, needs a new process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing.reduction import DupFd
from pathlib import Path
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded"])


class Descriptor:
    """A number of an open file that a process is given at its start, where it is another."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return _received, (DupFd(self.number),)


def _received(descriptor):
    return descriptor.detach()


class Popen:
    """A process, with the methods of :class:`subprocess.Popen`; its input is empty.

    ``argv`` begins with the interpreter, and a script, or ``-c`` and a text.
    """

    def __init__(self, argv, *, stdout=None, stderr=None, cwd=".", env=None, text=False):
        argv = [os.fspath(word) for word in argv]
        assert argv[0] == sys.executable
        self.args, self.returncode = argv, None
        self.stdout, out = _opened(stdout, text)
        self.stderr, err = (None, out) if stderr == subprocess.STDOUT else _opened(stderr, text)
        env = dict(os.environ if env is None else env)
        given = (argv[1:], Descriptor(out), Descriptor(err), str(cwd), env)
        self._process = CONTEXT.Process(target=_run, args=given)
        with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(sys.path)}):
            self._process.start()  # the first one starts the process that forks
        self.pid = self._process.pid
        for mine, theirs in ((self.stdout, out), (self.stderr, err)):
            if mine:
                os.close(theirs)

    def poll(self):
        self._process.join(0)
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Read both streams to their ends."""
        read = {}

        def keep(name):
            if stream := getattr(self, name):
                with contextlib.suppress(ValueError):  # the test has closed it
                    read[name] = stream.read()

        readers = [threading.Thread(target=keep, args=(name,)) for name in ("stdout", "stderr")]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            for reader in readers:
                reader.join()
        return read.get("stdout"), read.get("stderr")

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            self.kill()
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()


def run(argv, *, capture_output=False, timeout=None, check=False, **options):
    """Run a program to its end, as :func:`subprocess.run`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(argv, **options) as process:
        done = subprocess.CompletedProcess(argv, None, *process.communicate(timeout))
    done.returncode = process.returncode
    if check:
        done.check_returncode()
    return done


def _opened(stream, text):
    """Our end of a pipe, if it is one, and the descriptor that the process writes to."""
    if stream != subprocess.PIPE:
        return None, 1 if stream is None else stream if isinstance(stream, int) else stream.fileno()
    read, write = os.pipe()
    return os.fdopen(read, "r" if text else "rb"), write


def _run(argv, out, err, cwd, env):
    """Become the program, in a process that was forked for it."""
    assert threading.active_count() == 1
    for number, stream in ((1, out), (2, err)):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    kind, *rest = argv
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = argv
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")
