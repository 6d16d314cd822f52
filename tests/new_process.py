"""New Python processes for tests that need one of their own: forks of a server that has loaded torch and torchvision, which takes five seconds, and nothing else.

What such a process has is what `python` and `import torch, torchvision` leave: none of our code, no shim, no pytest. One server serves all workers of a test run, and
the first that asks waits for the loading. A test of how a process starts, or of what loads torch, starts the interpreter itself.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import runpy
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

ADDRESS = 'SYNTHAUG_TEST_PROCESSES'


class Said(NamedTuple):
    """How a command line ended."""

    status: int
    out: str
    err: str


@contextlib.contextmanager
def server() -> Iterator[None]:
    """A server of this test run, whose address processes find in their environment; it ends with this process."""
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}  # each process has its own
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, 'stderr'), 'wb') as said:
        os.environ[ADDRESS] = os.path.join(folder, 'socket')
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.environ[ADDRESS])
            listening.listen(64)
            command = [sys.executable, __file__, str(listening.fileno())]
            process = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=said, pass_fds=[listening.fileno()])
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def new_python(*arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, stdin: str = '') -> Said:
    """Run `python -c SCRIPT ...` or `python -m MODULE ...` where torch and torchvision are loaded; standard error begins with what those said.

    Args:
        arguments: As the interpreter's.
        cwd: Its folder; None for the one of this process.
        env: Its whole environment; None for the one of this process. What decides how an interpreter starts, like PYTHONHASHSEED, has no effect.
        stdin: What it reads.
    """
    with tempfile.TemporaryDirectory() as streams, socket.socket(socket.AF_UNIX) as connection:
        asked = {'arguments': [*map(str, arguments)], 'cwd': str(cwd or Path.cwd()), 'env': {**(os.environ if env is None else env)}, 'streams': streams}
        said = [Path(streams, name) for name in ('0', '1', '2')]
        for path in said:
            path.write_text(stdin if path.name == '0' else '')
        connection.connect(os.environ[ADDRESS])
        connection.sendall(json.dumps(asked).encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile() as answer:
            status = answer.read()
        assert status, said[2].read_text()
        loading = Path(os.environ[ADDRESS]).with_name('stderr').read_text()
        return Said(int(status), said[1].read_text(), loading + said[2].read_text())


def run(arguments: list[str], cwd: str, env: dict[str, str], streams: str) -> None:
    """Be the process that was asked for."""
    for fd in (0, 1, 2):
        os.dup2(os.open(os.path.join(streams, str(fd)), os.O_RDWR | os.O_APPEND), fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = [cwd if arguments[0] == '-m' else '', *filter(None, env.get('PYTHONPATH', '').split(os.pathsep))]
    how, what, *rest = arguments
    if how == '-m':
        sys.argv[:] = ['-m', *rest]
        runpy.run_module(what, run_name='__main__', alter_sys=True)
    else:
        sys.argv[:] = ['-c', *rest]
        main = sys.modules['__main__'] = types.ModuleType('__main__')
        exec(compile(what, '<string>', 'exec'), main.__dict__)


class Request(socketserver.StreamRequestHandler):
    """Forks once more, and answers with the status of that process."""

    def handle(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read())
        if (pid := os.fork()) == 0:
            self.request.close()
            status: Any = 1
            try:
                run(**asked)
                status = 0
            except SystemExit as ended:
                if ended.code is None or isinstance(ended.code, int):
                    status = ended.code or 0
                else:
                    print(ended.code, file=sys.stderr)
            except BaseException:
                traceback.print_exc()
            finally:
                threading._shutdown()  # type: ignore[attr-defined]
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status & 255)
        self.wfile.write(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Loads at the first request, and ends when who started it is gone."""

    started_by = os.getppid()

    def __init__(self, listening: int) -> None:
        super().__init__('', Request, bind_and_activate=False)
        self.socket = socket.socket(fileno=listening)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        gc.disable()
        import torchvision  # noqa: F401

        gc.collect()
        gc.freeze()  # a collection in a fork would copy the memory of all that
        gc.enable()
        return True

    def service_actions(self) -> None:
        super().service_actions()
        if os.getppid() != self.started_by:
            sys.exit()


if __name__ == '__main__':
    del sys.path[0]  # the tests' folder
    with Server(int(sys.argv[1])) as processes:
        processes.serve_forever()
