"""A classifier of levels of rarity in a model folder: known without its weights, then loaded beside the denoiser that it is to guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from synthaug_plugins.errors import ModelError, nearest
from synthaug_plugins.models.base import Model
from synthaug_plugins.models.denoiser_model import DenoiserModel
from synthaug_plugins.models.levels import Levels
from synthaug_plugins.weights import check_fits, folder_identity, load_weights, model_folder, read_config

if TYPE_CHECKING:
    import torch

    from synthaug_plugins.diffusion import Denoiser, LevelClassifier

_KEYS = ('counts', 'found_at', 'scored_by')


class LevelClassifierModel:
    """What is known of a classifier of levels before its weights are read, and the way to read them.

    Args:
        name: `embedded:NAME` or the folder model/ that `synthaug learn minority` wrote.

    Attributes:
        name: as given.
        config: see `diffusion.build_level_classifier`.
        levels: which scores belong to which level.
        counts: class -> training images of each level, from the most common to the rarest.
        features: `Model.origin` of the denoiser whose features it looks at, and their size; None where it looks at images.
        scored_by: `identity` of the inspector whose scores the levels are of.
        found_at: the name of that denoiser, where it need not be the one that is guided; else None.

    Raises:
        ModelError: no such folder, or it holds no classifier of levels.
    """

    def __init__(self, name: str) -> None:
        import torch

        from synthaug_plugins.diffusion import build_level_classifier

        self.name = name
        self.folder = model_folder(name)
        known = read_config(self.folder)
        if known.get('kind') != 'levels':
            cure = 'Give the folder model of a run of `synthaug learn minority`.'
            raise ModelError(f'classifier = {name!r} is a model of the kind {known.get("kind")!r}, no classifier of levels.', cure)
        self.levels = Levels.from_json(known.get('levels'))
        self.config: dict[str, Any] = {key: value for key, value in known.items() if key not in _KEYS}
        with torch.device('meta'):  # refuses a wrong config, and costs no memory
            self._shape_only = build_level_classifier(self.config)
        self.counts: dict[str, list[int]] = _checked_counts(name, known.get('counts'), self.classes, self.levels.count)
        self.features: dict[str, Any] | None = self.config['features']
        scored_by, self.found_at = known.get('scored_by', {}), known.get('found_at')
        if not isinstance(scored_by, Mapping) or not isinstance(scored_by.get('model', {}), Mapping) or not isinstance(self.found_at, str | None):
            raise ModelError(f'classifier = {name!r}: its config does not say what the levels are of.', 'Learn it again.')
        self.scored_by: dict[str, Any] = dict(scored_by)

    @property
    def classes(self) -> list[str]:
        """Names of the classes of its training images, in label order."""
        return list(self.config['classes'])

    @property
    def label_conditioning(self) -> bool:
        """Whether it is told the class."""
        return bool(self.config['label_conditioning'])

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return self.config['channels'], self.config['resolution'], self.config['resolution']

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels that it was trained at."""
        return self.config['sigma_min'], self.config['sigma_max']

    def check(self, model: Model, interval: tuple[float, float] | None = None) -> None:
        """Refuse a model that it cannot guide.

        Args:
            model: the denoiser to guide, without its weights.
            interval: (lowest, highest) noise level at which it will be asked. None: it must have been trained at some level that the model supports.

        Raises:
            ModelError: the model makes images of another size, has other classes where one of the two is told them, its noise levels or `interval` lie
                outside of those that the classifier was trained at, or it is not the model whose features the classifier looks at.
        """
        mine = f'The classifier {self.name!r}'
        if model.size != self.size:
            found, wanted = ('x'.join(map(str, size)) for size in (self.size, model.size))
            raise ModelError(f'{mine} was trained on images of {found}, {model.name!r} makes {wanted}.', 'Learn one for this model.')
        told = isinstance(model, DenoiserModel) and model.takes_labels
        if self.label_conditioning and told and model.classes != self.classes:  # type: ignore[attr-defined]
            differ = sorted(set(self.classes) ^ set(model.classes))  # type: ignore[attr-defined]
            what = f'differ in {", ".join(differ[:6])}' if differ else 'stand in another order'
            raise ModelError(f'{mine} is told classes, and these and those of {model.name!r} {what}.', 'Learn one for this model.')
        (low, high), (lowest, highest) = interval or model.sigma_range, self.sigma_range
        apart = high < lowest or low > highest
        if apart or (interval is not None and (low < lowest or high > highest)):
            what = f'{mine} was trained at noise levels from {lowest:g} to {highest:g}, and would be asked at {low:g} to {high:g}.'
            raise ModelError(what, 'Learn one for these.' if apart else f'Set interval=({max(low, lowest):g}, {min(high, highest):g}).')
        if self.features is not None:
            if self.found_at is None and not model.has_origin(self.features):
                what = f'{mine} looks at features of the model {self.features.get("name")!r}; {model.name!r} is another one, or was changed.'
                raise ModelError(what, 'Guide that model, or learn a classifier for this one.')
            if self.found_at is not None:
                self._feature_model()

    def _feature_model(self) -> DenoiserModel:
        """The denoiser whose features it looks at, without its weights."""
        assert self.features is not None
        name = self.found_at or str(self.features.get('name'))
        model = DenoiserModel(name)
        if not model.has_origin(self.features):
            raise ModelError(
                f'The classifier {self.name!r} looks at features of {name!r}, which was changed since.', 'Restore it, or learn another classifier.'
            )
        return model

    def check_level(self, level: int) -> None:
        """Refuse (ModelError) what is no level of its own."""
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < self.levels.count:
            cure = f'They are numbered from 0, the most common, to {self.levels.count - 1}, the rarest.'
            raise ModelError(f'The classifier {self.name!r} has {self.levels.count} levels, and no level {level!r}.', cure)

    def label_of(self, class_name: str) -> int:
        """The label of a class, for a classifier that is told it.

        Raises:
            ModelError: it does not know the class.
        """
        if class_name not in self.classes:
            raise ModelError(f'The classifier {self.name!r} knows no class {class_name!r}.', nearest(class_name, self.classes))
        return self.classes.index(class_name)

    def check_weights(self) -> None:
        """Compare the names and shapes in the weights' header with those that the config builds.

        Raises:
            ModelError: the first that differs.
        """
        check_fits(self.folder, f'the classifier {self.name!r}', self._shape_only)

    def identity(self) -> dict[str, Any]:
        """Name, hashes of weights and of what else decides its results, licence: plain JSON.

        Raises:
            ModelError: the card is not JSON.
        """
        return folder_identity(self.name, self.folder, {'config': self.config, 'levels': self.levels.to_json(), 'counts': self.counts})

    def load(self, device: torch.device, denoiser: Denoiser | None = None) -> LevelClassifier:
        """The classifier with its weights, float32, for guidance only: gradients reach x, no weight.

        Args:
            denoiser: the loaded one that it will guide; a classifier that looks at its features shares it. Without it, such a classifier loads its own.

        Raises:
            ModelError: the weights cannot be read, or the denoiser has no features.
        """
        import torch

        from synthaug_plugins.diffusion import MiddleFeatures, build_level_classifier

        features = None
        if self.features is not None:
            shared = denoiser if self.found_at is None else None
            features = MiddleFeatures(self._feature_model().load(device, torch.float32) if shared is None else shared)  # type: ignore[arg-type]
        classifier = build_level_classifier(self.config, features)
        classifier.load_state_dict(load_weights(self.folder))
        return classifier.eval().requires_grad_(False).to(device, torch.float32)


def _checked_counts(name: str, counts: Any, classes: list[str], levels: int) -> dict[str, list[int]]:
    right = isinstance(counts, Mapping) and sorted(counts) == sorted(classes)
    if not right or not all(isinstance(row, list) and len(row) == levels and all(isinstance(n, int) and n >= 0 for n in row) for row in counts.values()):
        raise ModelError(f'classifier = {name!r}: its config does not say how many images of each class have each level.', 'Learn it again.')
    return {key: list(row) for key, row in counts.items()}
