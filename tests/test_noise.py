"""Noise: known answers, and dependence on seed and step alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from synthaug_plugins.diffusion import GeneratorNoise, SampleNoise, philox_normal
from synthaug_plugins.diffusion.noise import philox


@pytest.mark.parametrize(
    ('counter', 'key', 'words'),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_philox_gives_its_published_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    found = philox(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))  # type: ignore[arg-type]
    assert [int(w) for w in found] == list(words)


def test_noise_of_a_sample_ignores_the_rest_of_its_batch() -> None:
    seeds = [7, 2**53 - 1, 0, 12345, 2**32 + 7]
    batch = SampleNoise(seeds, (3, 5, 5))
    for draw in (lambda n: n.latents(), lambda n: n.step(0), lambda n: n.step(17)):
        whole = draw(batch)
        assert torch.equal(draw(SampleNoise(seeds[::-1], (3, 5, 5))), whole.flip(0))
        for k, seed in enumerate(seeds):
            assert torch.equal(draw(SampleNoise([seed], (3, 5, 5)))[0], whole[k])


def test_seeds_and_steps_give_unrelated_normal_noise() -> None:
    """Seeds that differ by one bit, high ones too, and neighbouring steps."""
    seeds = torch.tensor([0, 1, 2, 2**31, 2**32, 2**52])
    draws = torch.cat([philox_normal(seeds, stream, 20_000) for stream in (0, 1, 2)]).double()
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / math.sqrt(20_000)
    flat = draws.flatten()
    assert float(flat.mean()) == pytest.approx(0, abs=0.01)
    assert float(flat.std()) == pytest.approx(1, abs=0.01)
    assert float((flat**4).mean()) == pytest.approx(3, abs=0.05)
    assert float((flat.abs() > 3).double().mean()) == pytest.approx(0.0027, rel=0.2)


def test_generator_noise_is_the_official_codes(shared: Path) -> None:
    misc = np.load(shared / 'golden' / 'misc.npz')
    noise = GeneratorNoise(misc['srg_seeds'].tolist(), (3, 8, 8))
    assert np.array_equal(noise.latents().numpy(), misc['srg_randn'])
    assert np.array_equal(noise.labels(10).numpy(), misc['srg_randint'])
    assert np.array_equal(noise.step(0).numpy(), misc['srg_randn2'])


def test_generator_noise_of_a_step_does_not_depend_on_which_steps_were_used() -> None:
    every, some = GeneratorNoise([1, 2], (1, 4, 4)), GeneratorNoise([1, 2], (1, 4, 4))
    steps = [every.step(i) for i in range(6)]
    assert torch.equal(some.step(2), steps[2])
    assert torch.equal(some.step(5), steps[5])
    with pytest.raises(ValueError, match='step 4'):
        some.step(4)
