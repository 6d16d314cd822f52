"""Everything that a trainer's config can name. The registries import this module when a config first says `synthaug_plugins.`."""

from synthaug_plugins.training import data_preprocessor, frozen_bn_hook, mix_batch_sampler, mix_resume_hook, mixed_dataset, swap_transform, weighted_head

__all__ = ['data_preprocessor', 'frozen_bn_hook', 'mix_batch_sampler', 'mix_resume_hook', 'mixed_dataset', 'swap_transform', 'weighted_head']
