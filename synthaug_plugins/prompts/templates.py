"""Prompt templates: one placeholder `{}` for the class name, or for a sentence about it."""

from __future__ import annotations

from collections.abc import Sequence

from synthaug_plugins.errors import RecipeError, nearest
from synthaug_plugins.prompts.names import unprintable

_CIFAR = ('photo', 'blurry photo', 'black and white photo', 'low contrast photo', 'high contrast photo', 'bad photo', 'good photo')
_RENDITIONS = (
    *('a painting of {x} {}', '{x} plastic {}', 'a sculpture of {x} {}', 'a sketch of {x} {}', 'a tattoo of {x} {}', '{x} toy {}'),
    *('a rendition of {x} {}', '{x} embroidered {}', '{x} cartoon {}', '{x} {} in a video game', '{x} plushie {}', '{x} origami {}'),
    *('art of {x} {}', 'graffiti of {x} {}', 'a drawing of {x} {}', 'a doodle of {x} {}'),
)

ENSEMBLES: dict[str, tuple[str, ...]] = {
    'cifar': tuple(
        t for x in ('a', 'the') for t in (*(f'a {kind} of {x} {{}}.' for kind in _CIFAR), f'a photo of {x} small {{}}.', f'a photo of {x} big {{}}.')
    ),
    'imagenet': (
        *('itap of a {}.', 'a bad photo of the {}.', 'a origami {}.', 'a photo of the large {}.', 'a {} in a video game.', 'art of the {}.'),
        'a photo of the small {}.',
    ),
    'cars': (
        *('a photo of a {}.', 'a photo of the {}.', 'a photo of my {}.', 'i love my {}!'),
        *(f'a photo of my {kind} {{}}.' for kind in ('dirty', 'clean', 'new', 'old')),
    ),
    'sun': ('a photo of a {}.', 'a photo of the {}.'),
    'dtd': tuple(f'a photo of {x} {{}} {kind}.' for x in ('a', 'the') for kind in ('texture', 'pattern', 'thing', 'object')),
    'eurosat': ('a centered satellite photo of {}.', 'a centered satellite photo of a {}.', 'a centered satellite photo of the {}.'),
    'aircraft': ('a photo of a {}, a type of aircraft.', 'a photo of the {}, a type of aircraft.'),
    'caltech': tuple(t.replace('{x}', x) + '.' for x in ('a', 'the') for t in ('a photo of {x} {}', *_RENDITIONS)),
    'textual_inversion': (
        *('a photo of a {}', 'a rendering of a {}', 'a cropped photo of the {}', 'the photo of a {}', 'a photo of a clean {}', 'a photo of a dirty {}'),
        *('a dark photo of the {}', 'a photo of my {}', 'a photo of the cool {}', 'a close-up photo of a {}', 'a bright photo of the {}'),
        *('a cropped photo of a {}', 'a photo of the {}', 'a good photo of the {}', 'a photo of one {}', 'a close-up photo of the {}'),
        *('a rendition of the {}', 'a photo of the clean {}', 'a rendition of a {}', 'a photo of a nice {}', 'a good photo of a {}'),
        *('a photo of the nice {}', 'a photo of the small {}', 'a photo of the weird {}', 'a photo of the large {}', 'a photo of a cool {}'),
        'a photo of a small {}',
    ),
    'diverse': (
        *('a photo of a {}', 'a close-up photo of a {}', 'a photo of a {} seen from afar', 'a photo of a {} from above', 'a photo of a {} from the side'),
        *('a photo of a {} in bright sunlight', 'a photo of a {} at dusk', 'a photo of a {} on a cloudy day', 'a photo of a {} in the rain'),
        *('a photo of a {} with a blurred background', 'a photo of a {} in a cluttered scene', 'a photo of a {} in its usual surroundings'),
        *('a photo of several of one kind: {}', 'a photo of a {}, partly hidden', 'a photo of a small {}', 'a photo of a large {}'),
        *('an old photo of a {}', 'an amateur photo of a {}', 'a professional photo of a {}', 'a wide-angle photo of a {}'),
    ),
}
"""Template ensembles by name. Most are CLIP's published ones (its prompt list; for ImageNet the seven of its notebook), which
He et al. use in their Table A.15 (18 for CIFAR, 8 for Cars, 7 for ImageNet). `textual_inversion` are the 27 with which the words of objects are
learned (Gal et al. 2022; DA-Fusion). `diverse` is ours: view, light, distance and setting vary, which
at low guidance helps training more than one fixed wording (Fan et al., CVPR 2024, on diverse captions)."""


def fill(template: str, text: str) -> str:
    """`template` with every `{}` replaced by `text`. No other format syntax is known: names come from users."""
    return template.replace('{}', text)


def resolve_templates(templates: str | Sequence[str], placeholder: bool = True) -> tuple[str, ...]:
    """Templates of a recipe: a name of `ENSEMBLES`, one template, or several.

    Args:
        placeholder: whether each must hold `{}` (else none may).

    Raises:
        RecipeError: none, an empty or repeated one, a missing or foreign placeholder, control characters, an unknown ensemble.
    """
    if isinstance(templates, str):
        looks_like_name = placeholder and '{' not in templates and ' ' not in templates
        if looks_like_name and templates not in ENSEMBLES:
            raise RecipeError(f'templates = {templates!r} is no ensemble and holds no {{}}.', nearest(templates, ENSEMBLES))
        found: tuple[str, ...] = ENSEMBLES[templates] if looks_like_name else (templates,)
    elif isinstance(templates, Sequence):
        found = tuple(templates)
    else:
        raise RecipeError(f'templates = {templates!r} is no text and no list of texts.', "Write it like 'a photo of a {}'.")
    if not found:
        raise RecipeError('templates is empty.', "Give at least one, such as 'a photo of a {}'.")
    for template in found:
        if not isinstance(template, str) or not template.strip() or unprintable(template):
            raise RecipeError(f'The template {template!r} is empty, no text, or holds control characters.', "Write it like 'a photo of a {}'.")
        rest = template.replace('{}', '')
        if '{' in rest or '}' in rest:
            raise RecipeError(f'The template {template!r} holds a brace that is not {{}}.', 'The only placeholder is {}, for the class name.')
        if ('{}' in template) is not placeholder:
            cure = "Add {} where the class name goes, as in 'a photo of a {}'." if placeholder else 'Remove {}: these prompts never name a class.'
            raise RecipeError(f'The template {template!r} {"lacks" if placeholder else "holds"} the placeholder {{}}.', cure)
    if len(set(found)) < len(found):
        repeated = sorted({t for t in found if found.count(t) > 1})
        raise RecipeError(f'templates holds {repeated[0]!r} more than once.', 'Each template is used equally often; remove the copies.')
    return found
