"""The mathematics of diffusion, on tensors: no files, no configs, no image libraries.

Everything sees a model as a *denoiser*: D(x; sigma), the expected clean image given x = image + sigma * noise, with
images in [-1, 1]. Symbols and equation numbers are those of Karras et al. 2022, "Elucidating the Design Space of
Diffusion-Based Generative Models" (EDM), arXiv 2206.00364.
"""

from synthaug_plugins.diffusion.adapters import DiffusersDenoiser
from synthaug_plugins.diffusion.augmentation import Augmentation
from synthaug_plugins.diffusion.denoiser import CallCounter, Denoiser
from synthaug_plugins.diffusion.gradient_guidance import ClassifierGradient, SelfGuided
from synthaug_plugins.diffusion.grid import edm_sigmas, noise_levels
from synthaug_plugins.diffusion.guidance import Autoguidance, ClassifierFree, Guided
from synthaug_plugins.diffusion.inpainting import Blended, Region, cover
from synthaug_plugins.diffusion.level_classifier import LevelClassifier, MiddleFeatures
from synthaug_plugins.diffusion.loss import IDDPMUniform, LogNormal, LogUniform, VPUniform, denoising_error, denoising_loss
from synthaug_plugins.diffusion.mixture import GaussianMixture
from synthaug_plugins.diffusion.networks import build_denoiser, build_level_classifier, check_denoiser_config
from synthaug_plugins.diffusion.noise import GeneratorNoise, SampleNoise, philox_normal
from synthaug_plugins.diffusion.options import nfe, sampler_options
from synthaug_plugins.diffusion.precision import full_float32
from synthaug_plugins.diffusion.preconditioning import EDMPrecond, IDDPMPrecond, Precond, VEPrecond, VPPrecond
from synthaug_plugins.diffusion.presets import PRESETS, Preset
from synthaug_plugins.diffusion.sampler import sample
from synthaug_plugins.diffusion.schedules import iddpm_table, nearest_sigma

__all__ = [
    'PRESETS',
    'Augmentation',
    'Autoguidance',
    'Blended',
    'CallCounter',
    'ClassifierFree',
    'ClassifierGradient',
    'Denoiser',
    'DiffusersDenoiser',
    'EDMPrecond',
    'GaussianMixture',
    'GeneratorNoise',
    'Guided',
    'IDDPMPrecond',
    'IDDPMUniform',
    'LevelClassifier',
    'LogNormal',
    'LogUniform',
    'MiddleFeatures',
    'Precond',
    'Preset',
    'Region',
    'SampleNoise',
    'SelfGuided',
    'VEPrecond',
    'VPPrecond',
    'VPUniform',
    'build_denoiser',
    'build_level_classifier',
    'check_denoiser_config',
    'cover',
    'denoising_error',
    'denoising_loss',
    'edm_sigmas',
    'full_float32',
    'iddpm_table',
    'nearest_sigma',
    'nfe',
    'noise_levels',
    'philox_normal',
    'sample',
    'sampler_options',
]
