"""Which versions of timm this package was made for."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from synthaug_plugins.errors import RecipeError

TIMM_VERSIONS = '>=1.0.31,<1.1'
"""From the first version whose `ClassificationTask` takes `criterion_kwargs`; run with 1.0.31, the newest there is."""


def check_timm_version() -> str:
    """The version of the timm that Python imports.

    Raises:
        RecipeError: it lies outside `TIMM_VERSIONS`.
    """
    import timm

    # A checkout says 1.0.32.dev0: such a version counts as what it comes after.
    if not SpecifierSet(TIMM_VERSIONS).contains(Version(timm.__version__), prereleases=True):
        raise RecipeError(
            f'timm {timm.__version__} ({timm.__path__[0]}) is outside the versions {TIMM_VERSIONS} that this package extends.',
            f"Run: pip install 'timm{TIMM_VERSIONS}'; a checkout of timm beside train.py is imported before an installed one.",
        )
    return timm.__version__
