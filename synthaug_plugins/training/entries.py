"""Everything that a trainer's config can name. The registries import this module when a config first says `synthaug_plugins.`."""

from synthaug_plugins.mixing import batch_sampler
from synthaug_plugins.training import (
    clip_backbone,
    clip_classes_hook,
    clip_head,
    data_preprocessor,
    exact_resume,
    feature_dataset,
    few_shot_dataset,
    frozen_bn_hook,
    mix_resume_hook,
    mixed_dataset,
    paper_compat,
    replacement_sampler,
    stage_hook,
    store_dataset,
    swap_transform,
    unpooled_resnet,
    weighted_head,
)

__all__ = [
    'batch_sampler',
    'clip_backbone',
    'clip_classes_hook',
    'clip_head',
    'data_preprocessor',
    'exact_resume',
    'feature_dataset',
    'few_shot_dataset',
    'frozen_bn_hook',
    'mix_resume_hook',
    'mixed_dataset',
    'paper_compat',
    'replacement_sampler',
    'stage_hook',
    'store_dataset',
    'swap_transform',
    'unpooled_resnet',
    'weighted_head',
]
