"""Makes what the arms need of each draw: words, embeddings, classifiers and erasures by learning, stores by generating. What is finished is not made again."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pluggy
import torch

from synthaug_plugins.errors import RecipeError
from synthaug_plugins.evaluation.ablation.drawn import Drawn, plain_names
from synthaug_plugins.evaluation.ablation.entries import Made
from synthaug_plugins.evaluation.ablation.kinds import MAKES
from synthaug_plugins.evaluation.ablation.unseen import HeldOut, refuse_seen
from synthaug_plugins.evaluation.recipe_text import fill, names_in
from synthaug_plugins.store.card import recipe_differences
from synthaug_plugins.store.files import write_whole

RECORD = 'made.json'
"""What was made, from which recipes, and what of it is finished."""


class Making:
    """All that a comparison makes, in one folder.

    Args:
        made: in order.
        classes: names in label order.
        out: `out/made/<name>` or `out/made/<name>/<draw>` are the places; `out/made.json` is the record.
        device: 'auto', 'cpu', 'cuda', ...
        manager: the plugin manager.
        quiet: no progress bars.
        progress: takes one line per finished thing.
    """

    def __init__(
        self,
        made: Sequence[Made],
        classes: Sequence[str],
        out: Path,
        device: str,
        manager: pluggy.PluginManager | None,
        quiet: bool,
        progress: Callable[[str], None],
    ) -> None:
        self.made, self.classes, self.out = tuple(made), tuple(classes), out
        self.device, self.manager, self.quiet, self.progress = device, manager, quiet, progress

    def check(self) -> None:
        """Refuse recipes that are wrong in themselves, before anything is written; `stand_ins` does the rest.

        Raises:
            RecipeError: an unknown key, a value out of range; or `out` holds things made by other recipes, and the keys that differ are named.
        """
        self._recipes = {entry.name: _recorded(self._recipe(entry, None)) for entry in self.made}
        self._record = self._read_record()
        for name, recipe in self._recipes.items():
            before = self._record['recipes'].get(name)
            differ = recipe_differences(before, recipe) if before and (self.out / 'made' / name).exists() else []
            if differ:
                what = f'{str(self.out)!r} holds {name!r} made by another recipe; these differ: {"; ".join(differ[:12])}.'
                raise RecipeError(what, 'Restore these values, or give a new folder with --out.')

    def with_names(self, drawn: Drawn, stand_ins: Mapping[str, str] | None = None) -> Drawn:
        """A draw that knows where its things lie; `stand_ins` takes the place of some."""
        places = {entry.name: self._place(entry, drawn) / MAKES[entry.kind].gives for entry in self.made}
        return replace(drawn, names=plain_names(drawn, {**places, **(stand_ins or {})}))

    @contextmanager
    def stand_ins(self, drawn: Drawn) -> Iterator[dict[str, str]]:
        """Words, embeddings and classifiers of zeros and stores without images in place of those that will be made, to check what uses them; gone afterwards.

        Erasures have none: what would use them is checked without.

        Args:
            drawn: a draw of the fewest shots: whatever works with these works with all, such as a partner of the same class.

        Raises:
            RecipeError, DataError, ModelError: what the recipes' own commands would refuse before they load any weights.
        """
        without = {entry.name for entry in self.made if MAKES[entry.kind].stand_in is None}
        with TemporaryDirectory() as folder:
            places: dict[str, str] = {}
            for entry in self.made:
                write = MAKES[entry.kind].stand_in
                if write is None:
                    continue
                place = places[entry.name] = f'{folder}/{entry.name}'
                kept = {key: value for key, value in entry.cfg_options.items() if not names_in(value) & without}
                write(self._recipe(replace(entry, cfg_options=kept), self.with_names(drawn, places)), Path(place), self.classes, self.manager)
            yield places

    def refuse_seen(self, draws: Sequence[Drawn], places: Mapping[str, str]) -> None:
        """Refuse what would be made from images that it must not see; the images are read.

        Args:
            draws: all of them.
            places: of `stand_ins`.

        Raises:
            DataError: a validation or test image, byte for byte: of its own draw, or of any if it is made once.
            RecipeError: a training whose images are not those of its draw, or cannot be known.
        """
        held_out = {folder: HeldOut(folder) for drawn in draws for folder in (drawn.val, drawn.test)}
        for entry in self.made:
            of = draws[:1] if entry.once else draws if entry.kind == 'training' else ()  # all else is made from the shots of its draw by itself
            for drawn in of:
                # Where validation images are drawn too, those of one draw are among the shots of another.
                never = list(held_out.values()) if entry.once else [held_out[drawn.val], held_out[drawn.test]]
                refuse_seen(entry.name, MAKES[entry.kind].reads(self._recipe(entry, self.with_names(drawn, places)), self.manager), never)

    def make(self, drawn: Drawn) -> None:
        """Make what a draw needs and does not have.

        Raises:
            SynthAugError: whatever learning or generation raises; what is finished stays, and the rest goes on with the next call.
        """
        for entry in self.made:
            place = self._place(entry, drawn)
            key = place.relative_to(self.out / 'made').as_posix()
            if key in self._record['finished'] and place.exists():
                continue
            started = time.monotonic()
            self._record['recipes'][entry.name] = self._recipes[entry.name]
            self._record['finished'] = sorted(set(self._record['finished']) - self._made_from(entry, drawn))
            self._write_record()
            MAKES[entry.kind].make(self._recipe(entry, self.with_names(drawn)), place, self.device, self.manager, self.quiet)
            self._record['finished'] = sorted({*self._record['finished'], key})
            self._write_record()
            gc.collect()  # models hold cycles: their memory is free before the next one loads
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self.progress(f'made {key} ({time.monotonic() - started:.0f} s)')

    def _made_from(self, entry: Made, drawn: Drawn) -> set[str]:
        """What is finished and was made from a thing that is about to be made, again since its folder was removed.

        Its own command then looks at it once more: it keeps what fits and refuses what was made from another.
        """
        names: set[str] = set()
        for later in self.made:
            if later.uses & {entry.name, *names}:
                names.add(later.name)
        parted = {key: key.partition('/') for key in self._record['finished']}
        return {key for key, (name, _, draw) in parted.items() if name in names and (entry.once or draw == drawn.label)}

    def _place(self, entry: Made, drawn: Drawn) -> Path:
        folder = self.out / 'made' / entry.name
        return folder if entry.once else folder / drawn.label

    def _recipe(self, entry: Made, drawn: Drawn | None) -> dict[str, Any]:
        """The complete recipe of an entry for a draw; without one, with names in braces left as they are: what all draws share."""
        options = fill(entry.cfg_options, drawn.names) if drawn else dict(entry.cfg_options)
        if not entry.once:
            options |= {'data': str(drawn.train), 'seed': drawn.seed} if drawn else {'data': '{train}', 'seed': 0}
        recipe = MAKES[entry.kind].load(entry.recipe, options)
        if entry.kind == 'training':  # it may be of other classes: a backbone knows none
            return recipe
        if entry.once and recipe['classes'] is None:
            recipe['classes'] = list(self.classes)
        if recipe['classes'] is not None and tuple(recipe['classes']) != self.classes:
            what = f'made.{entry.name} has the classes {recipe["classes"]}, the data {list(self.classes)}.'
            raise RecipeError(what, "Leave them to the data: cfg_options={'classes': None}.")
        return recipe

    def _read_record(self) -> dict[str, Any]:
        path = self.out / RECORD
        try:
            record = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {'recipes': {}, 'finished': []}
            return {'recipes': dict(record['recipes']), 'finished': list(record['finished'])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(f'{str(path)!r} is damaged: {error!r}.', 'Give a new folder with --out.') from error

    def _write_record(self) -> None:
        write_whole(self.out / RECORD, (json.dumps(self._record, indent=1, ensure_ascii=False) + '\n').encode())


def _recorded(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without where it was read from."""
    return {key: value for key, value in recipe.items() if not key.startswith('_')}
