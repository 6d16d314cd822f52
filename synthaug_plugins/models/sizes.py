"""What sizes of latents and images a pipeline makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthaug_plugins.errors import ModelError, RecipeError
from synthaug_plugins.models.families import Family
from synthaug_plugins.models.files import ModelFiles
from synthaug_plugins.weights import CONFIG


def find_sizes(
    files: ModelFiles,
    family: Family,
    network: Mapping[str, Any],
    vae: Mapping[str, Any],
    tiny_vae: ModelFiles | None,
    image_size: int | Sequence[int] | None,
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """(C, h, w) of latents and (H, W) of images that a pipeline makes.

    Args:
        files: of the pipeline.
        family: its own.
        network, vae: their configs.
        tiny_vae: files of the VAE that is used in place of the pipeline's, or None.
        image_size: wanted, (H, W) in pixels or one number; None for what the network was trained for.

    Raises:
        ModelError: network and VAE do not fit each other.
        RecipeError: a size that the model cannot make.
    """
    for key in ('in_channels', *(['out_channels'] if family.inpaints else [])):
        if key not in network:
            raise ModelError(f'model = {files.name!r}: {family.network}/{CONFIG} names no {key}.', files.cure)
    channels, factor = family.latent_channels(network), _factor(vae)
    tiny = tiny_vae.config('') if tiny_vae else vae
    if tiny_vae and tiny.get('_class_name') != 'AutoencoderTiny':
        raise ModelError(f'tiny_vae = {tiny_vae.name!r} is a {tiny.get("_class_name")}.', 'Give an AutoencoderTiny, such as madebyollin/taesd.')
    for what, config in (('VAE', vae), ('tiny VAE', tiny)):
        if int(config.get('latent_channels', 4)) != channels or _factor(config) != factor:
            found = f'{config.get("latent_channels", 4)} channels and 1 : {_factor(config)}'
            raise ModelError(
                f'model = {files.name!r}: its network takes latents of {channels} channels and 1 : {factor}, the {what} makes {found}.', 'They must agree.'
            )
    if family.channels_beside(network) not in (0, 1 + channels):
        what = f'its network takes {network["in_channels"]} channels and returns {channels}'
        cure = f'For inpainting it takes {1 + 2 * channels} (latents, mask, latents of the masked image), or as many as it returns.'
        raise ModelError(f'model = {files.name!r}: {what}.', cure)
    native = network.get('sample_size') or 128  # FLUX has none, and its pipeline takes 128
    default = [int(n) * factor for n in (native if isinstance(native, list) else (native, native))]
    wanted = default if image_size is None else [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    multiple = factor * family.patch(network)
    if len(wanted) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n <= 0 or n % multiple for n in wanted):
        cure = f'Give one number or (height, width), multiples of {multiple}; {default[0]} x {default[1]} is what it was trained for.'
        raise RecipeError(f'image_size = {image_size!r} is nothing that {files.name!r} can make.', cure)
    return (channels, wanted[0] // factor, wanted[1] // factor), (wanted[0], wanted[1])


def _factor(vae: Mapping[str, Any]) -> int:
    """How many pixels of an image one of its latents stands for, along one side."""
    return 2 ** (len(vae.get('encoder_block_out_channels') or vae.get('block_out_channels') or [1]) - 1)
