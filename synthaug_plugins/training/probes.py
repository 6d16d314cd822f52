"""How good a backbone is without changing it: held as it is under a new linear head, or asked for the nearest training images."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import TestLoop
from torch import Tensor
from torch.nn.functional import normalize

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.registry import HOOKS, LOOPS
from synthaug_plugins.training.backbone_weights import check_fits, load_backbone
from synthaug_plugins.training.bare_model import bare


@HOOKS.register_module()
class FrozenBackboneHook(Hook):
    """Gives a classifier the backbone of a checkpoint and holds it: no gradient, BatchNorm statistics as they are. The head alone trains.

    The recipe freezes the backbone by itself (`frozen_stages`), so that no process waits for its gradients; this hook checks that it does.

    Args:
        checkpoint: of a pre-training, see `backbone_weights.load_backbone`.
        ema: take the average that an EMAHook kept.

    Raises:
        ModelError: no checkpoint with a backbone.
        RecipeError: another backbone, with the first weight that differs and both shapes; or one that would train.
    """

    priority = 'LOWEST'  # after every hook that might put modules into train mode

    def __init__(self, checkpoint: str, ema: bool = False) -> None:
        self.checkpoint, self.ema = checkpoint, ema

    def before_train(self, runner: Any) -> None:
        """Load the backbone; of a resumed training it is the same."""
        state = load_backbone(self.checkpoint, self.ema)
        check_fits(state, runner.cfg.model.backbone, scope=runner.cfg.get('default_scope') or 'mmpretrain')
        backbone = bare(runner.model).backbone
        learns = next((name for name, parameter in backbone.named_parameters() if parameter.requires_grad), None)
        if learns is not None:
            raise RecipeError(
                f'A probe holds its backbone, and {learns} of {type(backbone).__name__} would train.', 'Set model.backbone.frozen_stages to all stages.'
            )
        backbone.load_state_dict(state)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """MMEngine's loops put the model into train mode after every validation."""
        bare(runner.model).backbone.eval()


@LOOPS.register_module()
class NearestNeighbourLoop(TestLoop):
    """Classifies test images by the most similar training images, as k-NN probes of self-supervised learning do (Wu et al., CVPR 2018, Section 3.4).

    Features are the output of the neck, scaled to length 1. Each of the k most similar training images votes for its class with exp(s / tau), s being the
    cosine of both features. The loaded checkpoint (`load_from`) is compared with the recipe's backbone first; of one with an average of weights (EMAHook)
    MMEngine loads the average. Several processes share the features.

    Args:
        bank_dataloader: training images, in order and without augmentation.
        k: neighbours; 20 and 200 are usual.
        temperature: tau.
        runner, dataloader, evaluator: as for TestLoop.

    Raises:
        RecipeError: k or temperature out of range, or a checkpoint of another backbone; a recipe that was not given any.
        DataError: fewer training images than k, or training and test images of other classes.
    """

    def __init__(self, runner: Any, dataloader: Any, evaluator: Any, bank_dataloader: dict[str, Any], k: int = 200, temperature: float = 0.07) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise RecipeError(f'test_cfg.k = {k!r} is no number of neighbours.', 'Use 20 or 200.')
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
            raise RecipeError(f'test_cfg.temperature = {temperature!r} is not positive.', 'Use 0.07.')
        super().__init__(runner, dataloader, evaluator)
        # Loaders of the recipe's own get their collate function from `training.run`; this one stands inside of test_cfg.
        self.bank_dataloader = runner.build_dataloader({'collate_fn': {'type': 'default_collate'}, **bank_dataloader})
        self.k, self.temperature = k, temperature
        bank = self.bank_dataloader.dataset
        if len(bank) < k:
            raise DataError(f'There are {len(bank)} training images, fewer than k = {k}.', 'Set test_cfg.k lower.')
        self._classes = list(bank.metainfo['classes'])
        other = list(self.dataloader.dataset.metainfo['classes'])
        if other != self._classes:
            raise DataError(
                f'The classes differ, and so would what a label means: training images {self._classes}, test images {other}.',
                'Give both the same class folders, or the same metainfo.classes.',
            )

    def run(self) -> dict[str, float]:
        """Collect the features of all training images, then test."""
        cfg = self.runner.cfg
        if not cfg.get('load_from'):
            raise RecipeError('A probe was given no checkpoint.', 'Run: synthaug test RECIPE CHECKPOINT --work-dir FOLDER')
        check_fits(load_backbone(cfg.load_from), cfg.model.backbone, scope=cfg.get('default_scope') or 'mmpretrain')
        self.runner.model.eval()
        parts = [self._features(batch) for batch in self.bank_dataloader]
        features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        gathered: list[Any] = all_gather_object((features.cpu(), labels.cpu()))
        # DefaultSampler deals images out one by one and repeats the first ones where they do not come out even.
        count, size = len(self.bank_dataloader.dataset), get_world_size()
        whole = (torch.stack(part, 1).flatten(0, 1)[:count] for part in zip(*gathered, strict=True)) if size > 1 else (features, labels)
        self._bank, self._labels = (part.to(features.device) for part in whole)
        return super().run()  # type: ignore[no-any-return]

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Classify a batch."""
        self.runner.call_hook('before_test_iter', batch_idx=idx, data_batch=data_batch)
        features, _ = self._features(data_batch)
        votes = neighbour_votes(features, self._bank, self._labels, len(self._classes), self.k, self.temperature)
        samples = data_batch['data_samples']
        for sample, scores in zip(samples, votes, strict=True):
            sample.set_pred_score(scores).set_pred_label(scores.argmax().view(1))
        outputs = [sample.to_dict() for sample in samples]
        self.evaluator.process(data_samples=samples, data_batch=data_batch)
        self.runner.call_hook('after_test_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs)

    @torch.no_grad()
    def _features(self, data_batch: Any) -> tuple[Tensor, Tensor]:
        """(B, C) features of length 1 and (B,) labels."""
        model = bare(self.runner.model)
        labels = torch.cat([sample.gt_label for sample in data_batch['data_samples']])
        found = model.extract_feat(model.data_preprocessor(data_batch, False)['inputs'])
        feature = found[-1] if isinstance(found, tuple | list) else found
        return normalize(feature.flatten(1), dim=1), labels.to(feature.device)


def neighbour_votes(features: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Share of the votes that each class gets, (B, classes), rows of sum 1 (Wu et al. 2018, Section 3.4).

    Args:
        features: (B, C), of length 1.
        bank: (N, C), of length 1.
        labels: (N,) of the bank.
        classes: their number.
        k: neighbours, at most N.
        temperature: a neighbour with cosine s weighs exp(s / temperature).
    """
    similarity, place = (features @ bank.T).topk(k, dim=1)
    weights = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: shares stay, and nothing overflows
    votes = weights.new_zeros(len(features), classes).scatter_add_(1, labels[place], weights)
    return votes / votes.sum(1, keepdim=True)
