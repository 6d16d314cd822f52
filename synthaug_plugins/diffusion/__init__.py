"""The mathematics of diffusion, on tensors: no files, no configs, no image libraries.

Everything sees a model as a *denoiser*: D(x; sigma), the expected clean image given x = image + sigma * noise, with
images in [-1, 1]. Symbols and equation numbers are those of Karras et al. 2022, "Elucidating the Design Space of
Diffusion-Based Generative Models" (EDM), arXiv 2206.00364.
"""

from synthaug_plugins.diffusion.denoiser import Denoiser, EDMPrecond
from synthaug_plugins.diffusion.grid import edm_sigmas, sigma_range
from synthaug_plugins.diffusion.loss import edm_loss, lognormal_sigmas
from synthaug_plugins.diffusion.networks import build_denoiser, check_denoiser_config
from synthaug_plugins.diffusion.noise import SampleNoise, philox_normal
from synthaug_plugins.diffusion.precision import full_float32
from synthaug_plugins.diffusion.sampler import check_sampler, sample
from synthaug_plugins.diffusion.unet import UNet

__all__ = [
    'Denoiser',
    'EDMPrecond',
    'SampleNoise',
    'UNet',
    'build_denoiser',
    'check_denoiser_config',
    'check_sampler',
    'edm_loss',
    'edm_sigmas',
    'full_float32',
    'lognormal_sigmas',
    'philox_normal',
    'sample',
    'sigma_range',
]
