"""Classifiers of levels on noisy images: probabilities that are exact and finite, gradients that guide, and training that kills cannot change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug_plugins.diffusion import ClassifierGradient, EDMPrecond, Guided, LevelClassifier, MiddleFeatures, build_denoiser, build_level_classifier
from synthaug_plugins.diffusion.level_classifier import ordinal_log_probs
from synthaug_plugins.errors import DataError, ModelError, RecipeError
from synthaug_plugins.learning.checkpoint import load_checkpoint
from synthaug_plugins.learning.minority import RatedImages, split_levels, train_levels, validate_levels
from synthaug_plugins.learning.minority_options import LevelTraining, check_level_training, noise_levels, sigma_range

CPU = torch.device('cpu')
SMALL: dict[str, Any] = {'channels': 16, 'channel_mult': (1, 2), 'blocks_per_level': 1}
DENOISER: dict[str, Any] = {
    **{'kind': 'edm', 'resolution': 8, 'channels': 1, 'classes': ['a', 'b'], 'label_conditioning': True, 'label_dropout': 0.1, 'sigma_data': 0.5},
    'network': {'type': 'ddpmpp', 'channels': 16, 'channel_mult': [1, 2], 'blocks_per_level': 1, 'attention_resolutions': []},
}
CONFIG: dict[str, Any] = {
    **{'kind': 'levels', 'resolution': 8, 'channels': 1, 'classes': ['a', 'b'], 'label_conditioning': False, 'sigma_data': 0.5},
    **{'sigma_min': 0.01, 'sigma_max': 20.0, 'levels': {'count': 4}, 'features': None, 'network': dict(SMALL)},
}


pytestmark = pytest.mark.usefixtures('one_thread')


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stirred(classifier: torch.nn.Module) -> Any:
    """With weights other than those of the start, where the output is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return classifier.eval()


def test_ordinal_probabilities_are_those_of_proportional_odds_and_sum_to_one() -> None:
    f, limits, log_scale = noise(50, seed=1) * 4, torch.tensor([-2.0, 0.3, -1.0, 1.2]), noise(50, seed=2)
    b = torch.tensor([-2.0, *(-2.0 + np.cumsum(np.exp([0.3, -1.0, 1.2])))], dtype=torch.float64)
    below = torch.sigmoid((b - f.double()[:, None]) * log_scale.double().exp()[:, None])  # p(level <= j)
    expected = torch.diff(below, prepend=torch.zeros(50, 1), append=torch.ones(50, 1))
    found = ordinal_log_probs(f, limits, log_scale)
    torch.testing.assert_close(found.double().exp(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(50))


@pytest.mark.parametrize('f', [0.0, 80.0, -80.0, 1e4, -1e30])
@pytest.mark.parametrize('gap', [-1e4, -3.0, 1e4])
@pytest.mark.parametrize('log_scale', [-1e4, 0.0, 1e4])
def test_no_logarithm_is_infinite_however_far_a_sample_lies_from_a_level(f: float, gap: float, log_scale: float) -> None:
    leaf = torch.tensor([f], requires_grad=True)
    found = ordinal_log_probs(leaf, torch.tensor([0.0, gap, gap]), torch.tensor([log_scale]))
    assert torch.isfinite(found).all()
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize('loss', ['ordinal', 'cross_entropy'])
@pytest.mark.parametrize('levels', [2, 100])
def test_before_training_all_levels_are_equally_likely(loss: str, levels: int) -> None:
    classifier = LevelClassifier(levels, 8, 3, loss=loss, **SMALL)
    found = classifier(noise(2, 3, 8, 8), torch.tensor([0.01, 20.0]))
    torch.testing.assert_close(found, torch.full((2, levels), -math.log(levels)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('pooling', ['attention', 'mean'])
def test_log_prob_is_one_sample_s_own_and_its_gradient_is_that_of_the_function(pooling: str) -> None:
    classifier = stirred(LevelClassifier(5, 8, 1, 2, pooling=pooling, attention_resolutions=(4,), head_channels=8, **SMALL))
    x, sigma, levels, labels = noise(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0, 4, 2]), torch.tensor([0, 1, 1])
    whole = classifier.log_prob(x, sigma, levels, labels)
    assert whole.dtype == torch.float32
    assert torch.isfinite(whole).all()
    for i in range(3):
        alone = classifier.log_prob(x[i : i + 1], sigma[i], levels[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-5, atol=1e-5)
    leaf, step = x.clone().requires_grad_(), 1e-2
    (gradient,) = torch.autograd.grad(classifier.log_prob(leaf, sigma, levels, labels).sum(), leaf)
    direction = gradient / gradient.norm()
    up, down = (classifier.log_prob(x + s * step * direction, sigma, levels, labels).sum().double() for s in (1, -1))
    torch.testing.assert_close((up - down) / (2 * step), gradient.norm(), rtol=2e-2, atol=1e-4)


def test_a_classifier_guides_towards_its_level_through_the_term_that_there_is() -> None:
    classifier = stirred(LevelClassifier(4, 8, 1, **SMALL))
    x, sigma, levels = noise(6, 1, 8, 8, seed=4), torch.tensor(0.7, dtype=torch.float64), torch.full((6,), 3)

    class Keeps:
        sigma_min, sigma_max = 0.0, math.inf

        def __call__(self, x: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
            return x

        def round_sigma(self, sigma: Tensor) -> Tensor:
            return sigma

    guided = Guided(Keeps(), [ClassifierGradient(0.05, lambda x, sigma, cond: classifier.log_prob(x, sigma, levels))])
    assert (classifier.log_prob(guided(x, sigma), sigma, levels) > classifier.log_prob(x, sigma, levels)).all()


def test_features_are_what_the_denoiser_makes_in_its_middle_and_its_weights_are_not_the_classifiers() -> None:
    torch.manual_seed(0)
    denoiser = stirred(build_denoiser(DENOISER)).requires_grad_(False)
    features, x, labels = MiddleFeatures(denoiser), noise(2, 1, 8, 8), torch.tensor([1, 0])
    seen: list[Tensor] = []
    hook = denoiser.network.middle[-1].register_forward_hook(lambda _, __, made: seen.append(made))
    denoiser(x, torch.tensor([0.2, 2.0]), labels)
    hook.remove()
    assert torch.equal(features(x, torch.tensor([0.2, 2.0]), labels), seen[0])
    assert tuple(seen[0].shape[1:]) == features.size
    classifier = stirred(LevelClassifier(3, features.size[1], features.size[0], 2, features=features, channels=16, channel_mult=(1,)))
    assert not any('denoiser' in name or 'features' in name for name in classifier.state_dict())
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(classifier.log_prob(leaf, torch.tensor([0.2, 2.0]), torch.tensor([2, 0]), labels).sum(), leaf)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert all(p.grad is None for p in denoiser.parameters())
    with pytest.raises(ModelError, match='EDMPrecond has no features to classify by'):
        MiddleFeatures(EDMPrecond(torch.nn.Identity()))


def test_a_seed_draws_the_denoisers_weights_in_the_order_that_it_always_did() -> None:
    parts = list(dict.fromkeys(name.split('.')[1] for name, _ in build_denoiser(DENOISER).named_parameters()))
    assert parts == ['first', 'encoder', 'decoder', 'middle', 'last_norm', 'last', 'embed_label', 'embed0', 'embed1']


def test_labels_that_a_classifier_cannot_use_are_refused() -> None:
    x, sigma = noise(2, 1, 8, 8), torch.tensor(1.0)
    told, untold = LevelClassifier(3, 8, 1, 2, **SMALL), LevelClassifier(3, 8, 1, **SMALL)
    for classifier, labels, said in (
        (told, None, 'labels are missing'),
        (told, torch.tensor([0, 2]), 'a label says that there is none'),
        (told, torch.tensor([0, 3]), 'The label 3 is outside'),
        (told, noise(2, 16), 'Label vectors were given'),
        (untold, torch.tensor([0, 1]), 'unconditional network'),
    ):
        with pytest.raises(ModelError, match=said):
            classifier(x, sigma, labels)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'network': {'loss': 'ordinall'}}, "loss = 'ordinall' is unknown. Did you mean 'ordinal'"),
        ({'network': {'pooling': 'max'}}, "pooling = 'max' is unknown"),
        ({'network': {'chanels': 16}}, "no option 'chanels'. Did you mean 'channels'"),
        ({'network': {'channels': 1.5}}, 'channels = 1.5'),
        ({'levels': {'count': 1}}, '1 levels has nothing to tell apart'),
        ({'sigma_min': 20.0, 'sigma_max': 1.0}, '20.0 to 1.0'),
        ({'sigma_data': 0.0}, 'sigma_data = 0.0'),
        ({'label_conditioning': True, 'classes': []}, 'names no classes'),
        ({'kind': 'edm'}, "kind = 'edm', not a classifier of levels"),
        ({'colour': 1}, "unknown key 'colour'"),
    ],
)
def test_a_config_that_makes_no_classifier_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_level_classifier({**CONFIG, **change})


def test_every_level_gives_the_same_share_to_validation_and_one_image_at_least() -> None:
    levels = np.repeat([0, 1, 2], [100, 40, 2])
    train, validation = split_levels(levels, 0.05, seed=3)
    assert np.bincount(levels[validation]).tolist() == [5, 2, 1]
    assert sorted([*train, *validation]) == list(range(142))
    assert split_levels(levels, 0.05, seed=3)[1].tolist() == validation.tolist() != split_levels(levels, 0.05, seed=4)[1].tolist()
    with pytest.raises(DataError, match='Level 1 has 1 images'):
        split_levels(np.array([0, 0, 1]), 0.05, 0)


def test_a_noise_distribution_stays_in_its_range_and_knows_the_published_timesteps() -> None:
    options = LevelTraining(noise='linear', sigma_min=0.0101, sigma_max=152.0)
    assert sigma_range(options, (0.0, math.inf)) == (0.0101, 152.0)
    drawn = noise_levels('linear', 0.0101, 152.0).draw(20_000, 'cpu')
    assert 0.0101 <= float(drawn.min()) < 0.02
    assert 100 < float(drawn.max()) <= 152.0
    assert float((drawn < 6.37).float().mean()) == pytest.approx(0.605, abs=0.02)  # timestep 605 of 1000
    assert sigma_range(LevelTraining(), (0.0, math.inf)) == (0.002, 80.0)
    assert sigma_range(LevelTraining(), (0.02, 100.0)) == (0.02, 80.0)
    with pytest.raises(RecipeError, match='no range within'):
        sigma_range(LevelTraining(sigma_min=0.002), (0.02, 100.0))
    with pytest.raises(RecipeError, match='No timestep'):
        noise_levels('cosine', 0.001, 0.0011)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'batch_size': 0}, 'batch_size = 0'),
        ({'learning_rate': 0.0}, 'learning_rate = 0.0'),
        ({'weight_decay': -1}, 'weight_decay = -1'),
        ({'noise': 'log_unifrom'}, "Did you mean 'log_uniform'"),
        ({'validation': 0.6}, 'validation = 0.6'),
        ({'flip': 1}, 'flip = 1'),
        ({'sigma_max': math.inf}, 'sigma_max = inf'),
        ({'precision': 'fp16'}, "precision = 'fp16'"),
    ],
)
def test_a_training_option_out_of_range_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        check_level_training(LevelTraining(**change))


def rated(count: int = 96, levels: int = 4) -> RatedImages:
    """Images whose level is how bright they are, of textures that say nothing."""
    level = np.arange(count) % levels
    texture = np.random.default_rng(0).integers(-20, 21, (count, 1, 8, 8))
    return RatedImages((40 + 50 * level[:, None, None, None] + texture).astype(np.uint8), level)


def test_what_can_be_seen_is_learned_and_noise_hides_it(tmp_path: Path) -> None:
    images, options = rated(), LevelTraining(images_shown=16 * 90, batch_size=16, learning_rate=5e-3, validation=0.25)
    trained = train_levels(images, CONFIG, options, tmp_path / 'work', CPU)
    _, validation = split_levels(images.levels, options.validation, options.seed)
    clear, dark = validate_levels(trained.classifier, images, validation, [0.05, 20.0], 0, CPU)
    assert clear.accuracy > 0.8
    assert clear.within_one == 1.0
    assert clear.rank_error < 0.25 < 1.0 < dark.rank_error
    assert clear.log_loss < 0.7 < dark.log_loss
    assert dark.accuracy < 0.5


def test_a_training_that_goes_on_ends_with_the_bits_of_an_unbroken_one(tmp_path: Path) -> None:
    images = RatedImages(rated().pixels, rated().levels, np.arange(96) % 2)
    config = {**CONFIG, 'label_conditioning': True, 'network': {**SMALL, 'dropout': 0.1}}
    options = LevelTraining(images_shown=8 * 7, batch_size=8, flip=True, checkpoint_steps=2)
    whole = train_levels(images, config, options, tmp_path / 'whole', CPU)

    class Killed(Exception):
        pass

    def die(shown: int, loss: Tensor) -> None:
        if shown == 8 * 5:
            raise Killed

    with pytest.raises(Killed):
        train_levels(images, config, options, tmp_path / 'broken', CPU, on_step=die)
    found = load_checkpoint(tmp_path / 'broken')
    assert found is not None
    assert found[1]['step'] == 4
    again = train_levels(images, config, options, tmp_path / 'broken', CPU)
    assert again.losses == whole.losses
    states = [classifier.state_dict() for classifier in (whole.classifier, again.classifier)]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    with pytest.raises(RecipeError, match='these differ: learning_rate'):
        train_levels(images, config, LevelTraining(images_shown=8 * 7, batch_size=8, flip=True, learning_rate=1e-3), tmp_path / 'broken', CPU)


def test_images_levels_and_config_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    images = rated()
    for wrong, said in (
        (RatedImages(images.pixels[:, :, :4], images.levels), 'needs uint8'),
        (RatedImages(images.pixels, images.levels % 3), 'not all of 0 to 3'),
        (RatedImages(images.pixels, images.levels, images.levels), 'labels are given'),
    ):
        with pytest.raises(DataError, match=said):
            train_levels(wrong, CONFIG, LevelTraining(images_shown=8, batch_size=8), tmp_path / 'work', CPU)
