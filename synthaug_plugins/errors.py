"""What can go wrong, said in one sentence with its cure.

Every refusal of this package is a `SynthAugError`. The command line prints the message without a traceback and ends
with `exit_code`, so that a script can tell a wrong recipe from a class that fell short of its quota.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class SynthAugError(Exception):
    """A refusal: `what` is wrong (with the key, file or value) and the `cure`, one sentence each."""

    exit_code = 2

    def __init__(self, what: str, cure: str = '') -> None:
        self.what, self.cure = what.strip(), cure.strip()
        super().__init__(f'{self.what} {self.cure}'.strip())

    def __reduce__(self) -> tuple[Any, ...]:
        return again, (type(self), self.what, self.cure)  # workers send refusals to their driver; constructors take other arguments


class RecipeError(SynthAugError):
    """A recipe (or a command-line option) holds a wrong key or value."""


class DataError(SynthAugError):
    """Real images, class names or source files are missing, unreadable or do not fit together."""


class ModelError(SynthAugError):
    """Weights or a model folder are missing, of the wrong kind, or do not fit the recipe."""


class StoreError(SynthAugError):
    """A folder is not a store, was made by another recipe, or holds damaged blocks."""


class MissingExtra(SynthAugError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str, why: str) -> None:
        super().__init__(f'{why} needs the module {module!r}, which is not installed.', f"Run: pip install 'synthaug-plugins[{extra}]'")


class QuotaShortfall(SynthAugError):
    """Generation ended, but some classes have fewer accepted images than the recipe asks for."""

    exit_code = 3


class FaultsFound(SynthAugError):
    """`verify` found damage in a store."""

    exit_code = 4


class ContaminationFound(SynthAugError):
    """`audit` found images of a store that are copies of held-out images."""

    exit_code = 5


class TrainingFailed(SynthAugError):
    """The trainer raised; its whole trace is in a file."""

    exit_code = 1


class ExecutorError(SynthAugError):
    """The workers of a run died or hung again and again, or could not be started."""

    exit_code = 1


class Stopped(SynthAugError):
    """The user stopped a run; what was finished is kept."""

    exit_code = 130


def again(kind: type[SynthAugError], what: str, cure: str) -> SynthAugError:
    """A refusal that came from another process, whatever the constructor of its class takes."""
    error = kind.__new__(kind)
    SynthAugError.__init__(error, what, cure)
    return error


_NAMES_SAID = 40


def first_line(error: BaseException | None) -> str:
    """What a foreign error says, for a sentence of ours: its first line without a full stop; its type where it says nothing, as timeouts do.

    >>> first_line(TimeoutError()), first_line(OSError('gone.\\nand more'))
    ('TimeoutError', 'gone')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip('.')


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Text that helps after an unknown `name`: the nearest `n` of the `known` names, else all of them, as far as a line can hold them.

    >>> nearest('RealGuidence', ['EDM', 'RealGuidance'])
    "Did you mean 'RealGuidance'?"
    """
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=n, cutoff=0.5)
    if close:
        return 'Did you mean ' + ' or '.join(repr(c) for c in close) + '?'
    more = f' and {len(known) - _NAMES_SAID} more' if len(known) > _NAMES_SAID else ''
    return f'Known: {", ".join(known[:_NAMES_SAID])}{more}.' if known else 'None are known.'
