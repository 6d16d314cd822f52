"""`store.json`, the card of a store: the plan it follows and what made it, as JSON and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from synthaug_plugins.errors import DataError, StoreError
from synthaug_plugins.plain_json import MAX_BYTES, parse_json
from synthaug_plugins.store.place import Place
from synthaug_plugins.store.plan import Plan, check_class_names

CARD = 'store.json'
FORMAT_VERSION = 2


def card_text(plan: Plan, made_by: Mapping[str, Any]) -> str:
    """The card as it is written."""
    card = {'format_version': FORMAT_VERSION, 'fingerprint': plan.fingerprint, 'made_by': made_by, **plan.content()}
    return json.dumps(card, indent=1, ensure_ascii=False) + '\n'


def read_card(place: Place) -> tuple[Plan, dict[str, Any]]:
    """The plan and `made_by` of the store that lies at `place`.

    Raises:
        StoreError: no card, another format version, or a card that is damaged or was edited.
    """
    path = place.path(CARD)
    try:
        card = parse_json(place.read(CARD, MAX_BYTES), finite=False)  # a recipe may say S_max = inf
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f'{place.given!r} is not a store (it has no {CARD}).', 'Give the folder that `synthaug generate --out` made.') from error
    except (OSError, ValueError) as error:
        raise StoreError(f'{path!r} cannot be read: {error}.', 'Restore it from a copy, or generate into a new folder.') from error
    version = card.get('format_version') if isinstance(card, dict) else None
    if version != FORMAT_VERSION:
        raise StoreError(
            f'{path!r} has format_version {version!r}; this version reads {FORMAT_VERSION}.',
            'Generate the store again from its recipe into a new folder, or use the version of synthaug-plugins that made it.',
        )
    try:
        plan = Plan.from_content(card)
        check_class_names(plan.classes)  # they become folders on export, and the store may be a stranger's
        fingerprint, made_by = card['fingerprint'], _provenance(card['made_by'])
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, DataError) as error:
        raise StoreError(f'{path!r} is damaged ({error!r}).', 'Restore it from a copy, or generate into a new folder.') from error
    if plan.fingerprint != fingerprint:
        raise StoreError(f'{path!r} was changed: its fingerprint does not match its content.', 'Restore it from a copy, or generate into a new folder.')
    return plan, made_by


def _provenance(made_by: Any) -> dict[str, Any]:
    """`made_by` as far as a program looks into it; TypeError if it is something else. What generation took is in `cost.json` alone."""
    if not isinstance(made_by, dict) or not isinstance(made_by.get('recipe', {}), dict):
        raise TypeError('made_by, or the recipe in it, is no object')
    if not isinstance(made_by.get('command', ''), str):
        raise TypeError('the command in made_by is no text')
    return {key: value for key, value in made_by.items() if key != 'cost'}


def differences(old: Plan, new: Plan) -> list[str]:
    """What differs between two plans, one line each: recipe keys (dotted), classes, blocks, with old and new values."""
    lines = recipe_differences(old.recipe, new.recipe)
    if old.classes != new.classes:
        lines.append(f'classes: {_short(json.dumps(old.classes, ensure_ascii=False))} -> {_short(json.dumps(new.classes, ensure_ascii=False))}')
    if len(old.blocks) != len(new.blocks):
        lines.append(f'number of blocks: {len(old.blocks)} -> {len(new.blocks)}')
    lines += _block_differences(old, new)
    return lines or ['the fingerprint alone: the plans are equal key by key']


def recipe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two recipes of plain JSON, one line for each dotted key, with old and new value; empty if nothing does."""
    a, b = dict(_flat(old)), dict(_flat(new))
    keys = [*a, *(k for k in b if k not in a)]
    return [f'{key}: {_short(a.get(key, "absent"))} -> {_short(b.get(key, "absent"))}' for key in keys if a.get(key) != b.get(key)]


def _block_differences(old: Plan, new: Plan) -> Iterator[str]:
    """One line per field of the blocks, at the first block where it differs; the classes first, as the fields of others cannot be compared."""
    seen: set[str] = set()
    for a, b in zip(old.blocks, new.blocks, strict=False):
        x, y = (', '.join(block.class_names.values()) for block in (a, b))
        if x != y:
            yield f'block {a.index} classes: {_short(x)} -> {_short(y)}'
            return
        for part, other in zip(a.parts, b.parts, strict=True):
            for name in ('label', 'target', 'max_tries', 'first', 'sources'):
                if getattr(part, name) != getattr(other, name) and name not in seen:
                    seen.add(name)
                    yield f'block {a.index} {part.class_name} {name}: {_change(getattr(part, name), getattr(other, name))}'


def _change(old: int | tuple[str, ...], new: int | tuple[str, ...]) -> str:
    """A field of a part before and after; of sources, how many there are and the first that is new or gone."""
    if isinstance(old, int) or isinstance(new, int):
        return f'{old} -> {new}'
    changed = sorted(set(old) ^ set(new))
    return f'{len(old)} images -> {len(new)} images, {changed[0]!r} in one only' if changed else f'{len(old)} images -> another order'


def _flat(value: Any, key: str = '') -> Iterator[tuple[str, str]]:
    """Dotted key and JSON text of every leaf of nested dicts and of lists that hold dicts."""
    if isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping) and value:
        for name in value:
            yield from _flat(value[name], f'{key}.{name}' if key else str(name))
    else:
        yield key or 'recipe', json.dumps(value, sort_keys=True, ensure_ascii=False)


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 3] + '...'
