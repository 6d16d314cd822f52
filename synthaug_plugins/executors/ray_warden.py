"""A small process that outlives its driver by a moment: when that is gone, killed or not, it ends what is left of the driver's Ray cluster.

Of a cluster whose driver is killed two helpers go on for minutes, and its folder stays for ever. `ray_cluster` starts this file by itself, with nothing but
the standard library, and holds the other end of its standard input: that ends with the driver, however the driver ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLUSTER = 'SYNTHAUG_RAY_CLUSTER'
"""Variable in the environment of every process of a cluster: its folder."""
_KEEP_ENVIRONMENT = 'SPT_NOENV'
"""Of setproctitle, which Ray's processes use: without it the name that a process gives itself is written over its environment as others see it."""
ENDED = b'ended'
"""What a driver says that has ended its cluster itself."""
_PATIENCE_S = 20.0
_QUIET_S = 2.0
"""A cluster is gone when nothing was seen of it for so long: a process shows no environment while it becomes another program."""


def main(folder: str) -> None:
    """Wait for the driver's end; then kill what belongs to the cluster and remove its folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # what ends a driver is sent to its whole group by some
        signal.signal(number, signal.SIG_IGN)
    quiet = 0.0 if sys.stdin.buffer.read() == ENDED else _QUIET_S
    began = last_seen = time.monotonic()
    while (now := time.monotonic()) < began + _PATIENCE_S:
        for pid in processes(folder):
            last_seen = now
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:  # gone by itself
                continue
        if now - last_seen > quiet:
            break
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def known_as_of(folder: str) -> Iterator[None]:
    """Processes that start in the block, and all that these start, are of the cluster with this folder."""
    before = {name: os.environ.get(name) for name in (CLUSTER, _KEEP_ENVIRONMENT)}
    os.environ |= {CLUSTER: folder, _KEEP_ENVIRONMENT: '1'}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def processes(folder: str) -> list[int]:
    """Those of the cluster that live; none where there is no /proc, as on macOS."""
    found = []
    for entry in Path('/proc').glob('[0-9]*'):
        try:
            is_ours = f'{CLUSTER}={folder}'.encode() in (entry / 'environ').read_bytes().split(b'\0')
            if is_ours and (entry / 'stat').read_text().rpartition(')')[2].split()[0] not in 'ZX':
                found.append(int(entry.name))
        except OSError:  # gone, or another user's
            continue
    return found


if __name__ == '__main__':
    main(sys.argv[1])
