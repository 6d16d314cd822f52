"""Licences as a hub knows them."""

from __future__ import annotations

from typing import Any

KNOWN = frozenset(
    [
        *('apache-2.0', 'mit', 'bsd', 'bsd-2-clause', 'bsd-3-clause', 'isc', 'unlicense', 'wtfpl', 'mpl-2.0', 'gpl-2.0', 'gpl-3.0', 'lgpl-3.0', 'agpl-3.0'),
        *('openrail', 'openrail++', 'creativeml-openrail-m', 'bigscience-openrail-m', 'bigscience-bloom-rail-1.0', 'bigcode-openrail-m'),
        *('cc', 'cc0-1.0', 'cc-by-2.0', 'cc-by-2.5', 'cc-by-3.0', 'cc-by-4.0', 'cc-by-sa-3.0', 'cc-by-sa-4.0', 'cc-by-nc-2.0', 'cc-by-nc-3.0', 'cc-by-nc-4.0'),
        *('cc-by-nd-4.0', 'cc-by-nc-nd-3.0', 'cc-by-nc-nd-4.0', 'cc-by-nc-sa-2.0', 'cc-by-nc-sa-3.0', 'cc-by-nc-sa-4.0'),
        *('cdla-sharing-1.0', 'cdla-permissive-1.0', 'cdla-permissive-2.0', 'c-uda', 'odbl', 'odc-by', 'pddl', 'etalab-2.0', 'other', 'unknown'),
    ]
)
"""Identifiers that a repository's card may have under `license`; a subset of the hub's own list."""


def head(licence: str | None) -> dict[str, Any]:
    """The keys of a card's head that say a licence: an identifier of the hub, or 'other' with the name that was given; none where none was given.

    >>> head('CC-BY-4.0'), head('Ours 1.0'), head(None)
    ({'license': 'cc-by-4.0'}, {'license': 'other', 'license_name': 'Ours 1.0'}, {})
    """
    if licence is None:
        return {}
    return {'license': licence.lower()} if licence.lower() in KNOWN else {'license': 'other', 'license_name': licence}
