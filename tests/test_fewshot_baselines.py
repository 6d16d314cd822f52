"""The baselines are what their papers say, choose on validation alone, and are the same for the same seed."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from synthaug_plugins.errors import DataError, RecipeError
from synthaug_plugins.evaluation.fewshot.accuracy import merits, recalls, top1
from synthaug_plugins.evaluation.fewshot.baselines import BASELINES, wise_ft, zero_shot
from synthaug_plugins.evaluation.fewshot.cross_modal import WARM_UP, cross_modal, rate, shuffled
from synthaug_plugins.evaluation.fewshot.linear_probe import linear_probe, logistic_regression
from synthaug_plugins.evaluation.fewshot.task import Fitted, Labelled, Task
from synthaug_plugins.evaluation.fewshot.tip_adapter import ALPHAS, BETAS, cache_logits, tip_adapter, tip_adapter_f

CLASSES = ('forest', 'river', 'highway', 'pasture', 'lake')
SCALE = 100.0


def make(shots: int = 8, dims: int = 32, blur: float = 1.2, hint: float = 2.0, seed: int = 0) -> tuple[Task, Labelled]:
    """A task whose texts point roughly, and whose images lie blurred, around the classes; and test images."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / dims**0.5

    centres = normalize(noise(len(CLASSES), dims), dim=1)

    def images(n: int) -> Labelled:
        labels = torch.arange(len(CLASSES)).repeat_interleave(n)
        return Labelled(normalize(centres[labels] + blur * noise(len(labels), dims), dim=1), labels)

    texts = centres + hint * noise(len(CLASSES), dims)
    prompts = tuple(normalize(text + 0.2 * noise(3, dims), dim=1) for text in texts)
    return Task(CLASSES, images(shots), images(6), prompts, SCALE), images(40)


@pytest.fixture(scope='module')
def task() -> Task:
    return make()[0]


@pytest.fixture(scope='module')
def test_images() -> Labelled:
    return make()[1]


def replaced(task: Task, **changes: object) -> Task:
    return dataclasses.replace(task, **changes)  # type: ignore[arg-type]


# Tasks


def test_a_class_without_shots_is_refused_by_name(task: Task) -> None:
    keep = (task.train.labels != 1) & (task.train.labels != 4)
    with pytest.raises(DataError, match="No shots of 'river', 'lake'"):
        replaced(task, train=Labelled(task.train.features[keep], task.train.labels[keep]))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: {'classes': (*CLASSES[:4], 'forest')}, 'told apart'),
        (lambda t: {'val': Labelled(t.val.features, t.val.labels + 1)}, 'go from 1 to 5'),
        (lambda t: {'val': Labelled(normalize(t.val.features[:, :8], dim=1), t.val.labels)}, '32 dimensions, the validation images 8'),
        (lambda t: {'prompts': t.prompts[:4]}, 'prompts of 4'),
        (lambda t: {'prompts': (*t.prompts[:4], torch.zeros(0, 32))}, "'lake'"),
        (lambda t: {'prompts': (*t.prompts[:4], 2 * t.prompts[4])}, "'lake' are not unit vectors"),
        (lambda t: {'logit_scale': 0.0}, 'no positive number'),
        (lambda t: {'logit_scale': float('nan')}, 'no positive number'),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(task: Task, change: Callable[[Task], dict[str, object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replaced(task, **change(task))


@pytest.mark.parametrize(
    ('features', 'labels', 'message'),
    [
        (torch.ones(2, 4), torch.zeros(2, dtype=torch.int64), 'not unit vectors'),
        (torch.full((2, 4), float('nan')), torch.zeros(2, dtype=torch.int64), 'not unit vectors'),
        (torch.eye(4).double(), torch.zeros(4, dtype=torch.int64), 'float64'),
        (torch.eye(4), torch.zeros(3, dtype=torch.int64), r'labels of shape \(3,\)'),
        (torch.eye(4), torch.zeros(4), 'float32'),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), r'shape \(0, 4\)'),
    ],
)
def test_features_and_labels_of_other_kinds_are_refused(features: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Labelled(features, labels)


def test_the_text_of_a_class_is_the_unit_mean_of_its_templates(task: Task) -> None:
    for vectors, text in zip(task.prompts, task.text, strict=True):
        mean = vectors.numpy().mean(0)
        np.testing.assert_allclose(text.numpy(), mean / np.linalg.norm(mean), atol=1e-6)


# Choosing


def test_recalls_weighted_by_their_images_are_the_top1(test_images: Labelled, task: Task) -> None:
    logits = task.zero_shot(test_images.features)[:-30]
    labels = test_images.labels[:-30]
    support = torch.bincount(labels).double()
    mean = (torch.tensor(recalls(logits, labels, CLASSES)).double() * support).sum() / support.sum()
    assert float(mean) == pytest.approx(top1(logits, labels))
    with pytest.raises(DataError, match="No images of 'lake'"):
        recalls(logits[:-20], labels[:-20], CLASSES)


def test_a_tie_on_validation_goes_to_the_smaller_change_from_zero_shot() -> None:
    before, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    wrong, far, near = before.flip(1), 3 * before, 2 * before
    found = merits(torch.stack([wrong, far, near]), labels, before)
    assert [merit[0] for merit in found] == [0, 100, 100]
    assert max(found) == found[2]
    # What is added to all classes alike is no change.
    assert merits((before + 7)[None], labels, before)[0][1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('method', [*BASELINES, 'wise_ft'])
def test_val_top1_is_that_of_the_returned_classifier(method: str, task: Task) -> None:
    fitted = fit(method, task, 0)
    assert fitted.val_top1 == top1(fitted.logits(task.val.features), task.val.labels)
    assert fitted.logits(task.val.features).dtype == torch.float32
    assert fitted.logits(task.val.features[:1]).shape == (1, len(CLASSES))


def fit(method: str, task: Task, seed: int) -> Fitted:
    if method == 'wise_ft':
        return wise_ft(task, *tuned_head(task))
    return cross_modal(task, seed, steps=120) if method == 'cross_modal' else BASELINES[method](task, seed)


def tuned_head(task: Task) -> tuple[Tensor, Tensor]:
    weight, bias = logistic_regression(task.train, len(CLASSES), 1e3)
    return weight.float(), bias.float()


@pytest.mark.parametrize('method', [*BASELINES, 'wise_ft'])
def test_equal_seeds_give_equal_logits_whatever_else_was_drawn(method: str, test_images: Labelled) -> None:
    task = make(shots=60)[0]  # more than one batch of Tip-Adapter-F
    torch.manual_seed(1)
    first = fit(method, task, 5)
    torch.manual_seed(2)
    torch.rand(100)
    state = torch.get_rng_state()
    with torch.no_grad():  # as the caller may have it
        second = fit(method, task, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.chosen == second.chosen
    assert torch.equal(first.logits(test_images.features), second.logits(test_images.features))


@pytest.mark.parametrize('method', [*BASELINES, 'wise_ft'])
def test_a_method_leaves_its_task_as_it_was(method: str) -> None:
    task, same = make()[0], make()[0]
    fit(method, task, 0)
    for a, b in ((task.train, same.train), (task.val, same.val)):
        assert torch.equal(a.features, b.features) and not a.features.requires_grad
    assert torch.equal(task.text, same.text) and not task.text.requires_grad


# Tip-Adapter


def plain_tip_adapter(task: Task, features: Tensor, keys: Tensor, alpha: float, beta: float) -> np.ndarray:
    f, k, onehot = features.double().numpy(), keys.double().numpy(), np.eye(len(CLASSES))[task.train.labels.numpy()]
    return SCALE * f @ task.text.double().numpy().T + alpha * np.exp(-beta * (1 - f @ k.T)) @ onehot


def test_tip_adapter_is_the_formula_of_the_paper(task: Task, test_images: Labelled) -> None:
    fitted = tip_adapter(task, 0)
    expected = plain_tip_adapter(task, test_images.features, task.train.features, fitted.chosen['alpha'], fitted.chosen['beta'])
    np.testing.assert_allclose(fitted.logits(test_images.features).numpy(), expected, atol=1e-3)


def test_a_cache_without_weight_is_zero_shot(task: Task, test_images: Labelled) -> None:
    expected = plain_tip_adapter(task, test_images.features, task.train.features, 0, 5.5)
    np.testing.assert_allclose(zero_shot(task, 0).logits(test_images.features).numpy(), expected, atol=1e-3)


def test_the_search_finds_what_trying_every_pair_finds(task: Task) -> None:
    best = 0.0
    for beta in BETAS:
        for alpha in ALPHAS:
            logits = plain_tip_adapter(task, task.val.features, task.train.features, alpha, beta)
            best = max(best, 100 * float((logits.argmax(1) == task.val.labels.numpy()).mean()))
    fitted = tip_adapter(task, 0)
    assert fitted.val_top1 == pytest.approx(best)
    assert fitted.val_top1 > zero_shot(task, 0).val_top1
    assert (min(ALPHAS), max(ALPHAS)) == (0.1, pytest.approx(2.855)) and (min(BETAS), max(BETAS)) == (0.1, pytest.approx(6.9655))


def test_untuned_keys_are_tip_adapter(task: Task, test_images: Labelled) -> None:
    plain, untuned = tip_adapter(task, 0), tip_adapter_f(task, 0, epochs=0)
    assert untuned.chosen == {**plain.chosen, 'epoch': 0}
    assert torch.equal(plain.logits(test_images.features), untuned.logits(test_images.features))
    with pytest.raises(RecipeError, match='epochs = -1'):
        tip_adapter_f(task, 0, epochs=-1)


def test_tuned_keys_fit_the_shots_better(task: Task) -> None:
    def loss(keys: Tensor) -> float:
        logits = task.zero_shot(task.train.features) + cache_logits(task.train.features, keys, torch.eye(len(CLASSES))[task.train.labels], 5.5)
        return float(torch.nn.functional.cross_entropy(logits, task.train.labels))

    seen: list[Tensor] = []
    original = torch.optim.AdamW

    class Watched(original):  # type: ignore[misc,valid-type]
        def __init__(self, parameters: list[Tensor], **options: float) -> None:
            seen.extend(parameters)
            assert (options['lr'], options['eps']) == (1e-3, 1e-4)
            super().__init__(parameters, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, 'AdamW', Watched)
        fitted = tip_adapter_f(task, 0)
    assert 1 <= fitted.chosen['epoch'] <= 20
    assert loss(seen[0].detach()) < loss(task.train.features)


# Linear probe


@pytest.mark.parametrize('C', [0.01, 1.0, 100.0])
def test_the_probe_agrees_with_scikit_learn(task: Task, C: float) -> None:
    linear_model = pytest.importorskip('sklearn.linear_model')
    reference = linear_model.LogisticRegression(C=C, tol=1e-10, max_iter=10_000)
    reference.fit(task.train.features.double().numpy(), task.train.labels.numpy())
    weight, bias = logistic_regression(task.train, len(CLASSES), C)
    np.testing.assert_allclose(weight.numpy(), reference.coef_, atol=1e-3 * max(1, abs(reference.coef_).max()))
    np.testing.assert_allclose((bias - bias.mean()).numpy(), reference.intercept_ - reference.intercept_.mean(), atol=1e-3)


@pytest.mark.parametrize(('shots', 'dims'), [(2, 32), (20, 32)])  # fewer and more shots than dimensions
def test_at_the_optimum_the_gradient_is_zero(shots: int, dims: int) -> None:
    train, C = make(shots, dims)[0].train, 3.0
    weight, bias = (part.requires_grad_() for part in logistic_regression(train, len(CLASSES), C))
    f, n = train.features.double(), len(train)
    (torch.nn.functional.cross_entropy(f @ weight.T + bias, train.labels) + weight.square().sum() / (2 * C * n)).backward()
    assert weight.grad is not None and bias.grad is not None
    assert float(weight.grad.abs().max()) < 2e-6 and float(bias.grad.abs().max()) < 2e-6


def test_the_probe_knows_no_text(task: Task, test_images: Labelled) -> None:
    other = replaced(task, prompts=task.prompts[::-1])
    assert torch.equal(linear_probe(task, 0).logits(test_images.features), linear_probe(other, 0).logits(test_images.features))


def test_the_probe_searches_eighths_of_a_decade(task: Task) -> None:
    eighth = 8 * np.log10(linear_probe(task, 0).chosen['C'])
    assert eighth == pytest.approx(round(eighth), abs=1e-6) and -48 <= eighth <= 48


# Cross-modal


def test_without_steps_cross_modal_is_zero_shot(task: Task, test_images: Labelled) -> None:
    fitted = cross_modal(task, 0, steps=0)
    assert fitted.chosen['step'] == 0
    torch.testing.assert_close(fitted.logits(test_images.features), task.zero_shot(test_images.features), atol=1e-4, rtol=0)


def test_cross_modal_learns_from_images_and_from_texts(test_images: Labelled) -> None:
    task = make(hint=3.0)[0]
    fitted = cross_modal(task, 0, steps=400)
    assert fitted.chosen['step'] > 0
    assert top1(fitted.logits(test_images.features), test_images.labels) > zero_shot_top1(task, test_images) + 5
    # Two templates that lean towards the next class and away from it: their mean, thus the head at the start, stays; the texts as shots do not.
    lean = normalize(task.text.roll(1, 0) - (task.text.roll(1, 0) * task.text).sum(1, keepdim=True) * task.text, dim=1)
    pairs = tuple(normalize(torch.stack([text + 1.5 * u, text - 1.5 * u]), dim=1) for text, u in zip(task.text, lean, strict=True))
    leaning = replaced(task, prompts=pairs)
    torch.testing.assert_close(leaning.text, task.text)
    difference = cross_modal(leaning, 0, steps=400).logits(test_images.features) - fitted.logits(test_images.features)
    assert float(difference.abs().max()) > 1


def zero_shot_top1(task: Task, images: Labelled) -> float:
    return top1(task.zero_shot(images.features), images.labels)


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [rate(step, 400) for step in range(401)]
    assert rates[0] == pytest.approx(1 / WARM_UP) and rates[WARM_UP - 1] == rates[WARM_UP] == 1 and rates[400] == pytest.approx(0)
    assert sorted(rates[:WARM_UP]) == rates[:WARM_UP] and sorted(rates[WARM_UP:], reverse=True) == rates[WARM_UP:]
    assert len(set(rates)) == 400  # only the top is taken twice


@pytest.mark.parametrize('n', [1, 5, 16, 40])
def test_every_pass_shows_every_example_once(n: int) -> None:
    drawn = shuffled(n, 16, 10, torch.Generator().manual_seed(0))
    assert drawn.shape == (10, 16)
    for one_pass in drawn.flatten().split(n)[:-1]:
        assert sorted(one_pass.tolist()) == list(range(n))


# WiSE-FT


def test_wise_ft_goes_from_zero_shot_to_the_tuned_head(task: Task, test_images: Labelled) -> None:
    weight, bias = tuned_head(task)
    tuned = test_images.features @ weight.T + bias
    none, half, all_of_it = (wise_ft(task, weight, bias, alpha=a).logits(test_images.features) for a in (0, 0.5, 1))
    torch.testing.assert_close(none, task.zero_shot(test_images.features), atol=1e-4, rtol=0)
    torch.testing.assert_close(all_of_it, tuned, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(half, (none + tuned) / 2, atol=1e-4, rtol=1e-5)
    assert wise_ft(task, weight, bias, alpha=0.5).chosen == {}


def test_wise_ft_never_does_worse_on_validation_than_its_ends(task: Task) -> None:
    weight, bias = tuned_head(task)
    fitted = wise_ft(task, weight, bias)
    assert fitted.val_top1 >= max(wise_ft(task, weight, bias, alpha=a).val_top1 for a in (0, 0.5, 1))
    # An untuned head changes nothing, so that the smallest share is chosen.
    assert wise_ft(task, SCALE * task.text, torch.zeros(5)).chosen == {'alpha': 0.0}


def test_wise_ft_refuses_a_head_of_another_task(task: Task) -> None:
    with pytest.raises(DataError, match=r'\(4, 32\)'):
        wise_ft(task, torch.zeros(4, 32), torch.zeros(4))
    with pytest.raises(RecipeError, match=r'alpha = 1.5'):
        wise_ft(task, SCALE * task.text, torch.zeros(5), alpha=1.5)


# Real features


@pytest.fixture(scope='module')
def real_task(shared: Path) -> tuple[Task, Labelled]:
    """Ten classes of Caltech-101 through a real MobileNet: 16 shots, 4 validation and 8 test images each, with foreign real CLIP texts."""
    weights = shared / 'data' / 'weights' / 'mobilenetv1_100_imagenet_12of13.npz'
    if not weights.is_file():
        pytest.skip(f'reference data absent: {weights} does not exist')
    spec = importlib.util.spec_from_file_location('load_packs', shared / 'data' / 'load_packs.py')
    assert spec is not None and spec.loader is not None
    packs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packs)

    def part(split: str, first: int, last: int) -> Labelled:
        images, labels, _, _ = packs.load_zip(shared / 'data' / 'caltech10', split)
        picked = np.concatenate([np.flatnonzero(labels == k)[first:last] for k in range(10)])
        pixels = np.stack([np.asarray(images[i].convert('RGB').resize((96, 96))) for i in picked])
        with torch.no_grad():
            features = packs.mobilenet_features(weights, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).mean((2, 3))
        return Labelled(normalize(features, dim=1), torch.from_numpy(labels[picked]).long())

    texts = torch.from_numpy(np.load(weights.with_name('clip_text_embeddings.npz'))['eurosat10_rn50']).float()
    prompts = tuple(normalize(texts[k : k + 1], dim=1) for k in range(10))
    task = Task(tuple(f'class {k}' for k in range(10)), part('train', 0, 16), part('train', 16, 20), prompts, SCALE)
    return task, part('test', 0, 8)


def test_on_real_features_the_probe_is_as_good_as_its_card_says(real_task: tuple[Task, Labelled]) -> None:
    task, images = real_task
    assert top1(linear_probe(task, 0).logits(images.features), images.labels) > 90  # 97 % with all images at full size


def test_on_real_features_the_cache_overrules_texts_that_mislead(real_task: tuple[Task, Labelled]) -> None:
    task, images = real_task
    assert zero_shot_top1(task, images) < 30
    assert top1(tip_adapter(task, 0).logits(images.features), images.labels) > 75
