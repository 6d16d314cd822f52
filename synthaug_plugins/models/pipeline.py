"""What is known of a text-to-image pipeline before its weights are read."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import ModelError
from synthaug_plugins.models.base import EmbeddingShape, check_token_count
from synthaug_plugins.models.erasure import Erasures, check_family
from synthaug_plugins.models.families import PIPELINES, REASONS, Family, call_default
from synthaug_plugins.models.files import ModelFiles, check_safetensors, component_class
from synthaug_plugins.models.noise import PipelineNoise
from synthaug_plugins.models.prompt_tokens import PromptTokens
from synthaug_plugins.models.sizes import find_sizes
from synthaug_plugins.models.words import Words
from synthaug_plugins.weights import CONFIG, EMBEDDED, PIPELINE_INDEX

SCHEDULER_CONFIG = 'scheduler_config.json'
DEFAULT_TOKENS = 5
"""Of an embedding, as Diffusion Inversion has it."""
VAES = ('AutoencoderKL', 'AutoencoderDC', 'AutoencoderTiny')


class TextPipeline(PipelineNoise):
    """The configs, tokenizers and headers of a pipeline: everything about a `TextModel` that needs no weights. See there.

    Raises:
        ModelError, RecipeError: see `TextModel`.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        image_size: int | Sequence[int] | None = None,
        tiny_vae: str | None = None,
        few_step: bool | None = None,
        words: str | Path | None = None,
        erasures: str | Path | None = None,
    ) -> None:
        self.name = str(name)
        self.files = ModelFiles(self.name, revision, variant)
        self._index = self.files.config('', PIPELINE_INDEX)
        self._family = self._find_family()
        self.family = self._family.name
        self._parts = self._find_parts()
        self._encoders = [e for e in self._family.encoders if e in self._parts]
        self._tokenizer_of = {e: e.replace('text_encoder', 'tokenizer') for e in self._encoders}
        if words is not None:
            self.refuse_words(f'words = {str(words)!r}')
        self.words = None if words is None else Words(words)
        self.tokens = self._tokens()
        self._network_config = self.files.config(self._family.network)
        self._vae_config = self.files.config('vae')
        self._scheduler_config = self.files.config('scheduler', SCHEDULER_CONFIG)
        self.tiny_vae = None if tiny_vae is None else ModelFiles(tiny_vae, index=CONFIG)
        self.erasures = None if erasures is None else Erasures(erasures)
        configs = self._network_config, self._vae_config
        self.size, self.image_size = find_sizes(self.files, self._family, *configs, self.tiny_vae, image_size)
        self.inpaints = self._family.channels_beside(self._network_config) > 0
        self._timesteps = self._read_noise()
        self.flow, self.timesteps = self._timesteps.kind == 'flow', self._timesteps.count
        self.guidance = self._guidance(few_step)
        few = self.guidance == 'none' or self._scheduler_config['_class_name'] == 'LCMScheduler'
        self.default_steps: int = 4 if few else int(call_default(self.pipeline_class, 'num_inference_steps'))
        self.default_guidance_scale: float = 1.0 if self.guidance == 'none' else float(call_default(self.pipeline_class, 'guidance_scale'))

    @property
    def pipeline_class(self) -> Any:
        """The class of diffusers that model_index.json names."""
        import diffusers

        return getattr(diffusers, self._index['_class_name'])

    def _find_family(self) -> Family:
        cls = str(self._index.get('_class_name', ''))
        if cls in PIPELINES:
            if self._index.get('requires_aesthetics_score'):
                raise ModelError(f'model = {self.name!r} is told an aesthetic score.', 'Such refiners have no adapter here; give the base model.')
            return PIPELINES[cls]
        what = f' is a {cls}: {REASONS[cls]}' if cls in REASONS else f': {cls} has no adapter here' if cls else f' has no _class_name in {PIPELINE_INDEX}'
        raise ModelError(f'model = {self.name!r}{what}.', f'Supported are {", ".join(PIPELINES)}.')

    def _part(self, component: str) -> tuple[str, str] | None:
        """(library, class) of a component, or None where the pipeline comes without."""
        found = self._index.get(component)
        return (str(found[0]), str(found[1])) if isinstance(found, list) and len(found) == 2 and found[0] and found[1] else None

    def _find_parts(self) -> dict[str, Any]:
        """The components that make images, and their classes; for the network the class of the family, which may have had another name."""
        wanted = [self._family.network, 'vae', 'scheduler']
        for encoder in self._family.encoders:
            if encoder not in self._family.optional or self._part(encoder):
                wanted += [encoder, encoder.replace('text_encoder', 'tokenizer')]
        if len(wanted) == 3:
            raise ModelError(f'model = {self.name!r}: its {PIPELINE_INDEX} names no text encoder.', f'Known are {", ".join(self._family.encoders)}.')
        parts = {}
        for component in wanted:
            part = self._part(component)
            if part is None:
                raise ModelError(f'model = {self.name!r}: its {PIPELINE_INDEX} names no {component}.', f'A {self.family} pipeline needs {", ".join(wanted)}.')
            if not any(path.startswith(f'{component}/') for path in self.files.files):
                raise ModelError(f'model = {self.name!r}: the folder {component} is missing or empty.', self.files.cure)
            if component == 'vae' and part[1] not in VAES:
                raise ModelError(f'model = {self.name!r}: its VAE is a {part[1]}.', f'Supported are {", ".join(VAES)}.')
            if component == self._family.network:
                if part[1] not in (self._family.network_class, *self._family.network_once):
                    raise ModelError(f'model = {self.name!r}: its {component} is a {part[1]}.', f'A {self.family} pipeline has a {self._family.network_class}.')
                part = ('diffusers', self._family.network_class)
            parts[component] = component_class(self.files, component, *part)
        return parts

    def _guidance(self, few_step: bool | None) -> str:
        """How the model is guided, see the class."""
        if self._network_config.get('guidance_embeds') or self._network_config.get('time_cond_proj_dim'):
            return 'distilled'
        scheduler, cls = self._scheduler_config, self._scheduler_config['_class_name']
        trailing = scheduler.get('timestep_spacing') == 'trailing' and scheduler.get('prediction_type', 'epsilon') == 'epsilon'
        euler = cls in ('EulerDiscreteScheduler', 'EulerAncestralDiscreteScheduler') and self.family in ('sd', 'sdxl')
        found = cls == 'LCMScheduler' or (euler and trailing) or self.family == 'flux'
        return 'none' if (found if few_step is None else few_step) else 'free'

    def _tokens(self) -> PromptTokens:
        known = {} if self.words is None else {self.words.of(name): self.words.vectors for name in self.words.classes}
        limited_by = [self._tokenizer_of[e] for e in self._family.limit_by if e in self._encoders] or list(self._tokenizer_of.values())
        limit = None if self._max_length is None else self._max_length - self._family.reserved
        return PromptTokens(self.files, known, {name: self._parts[name] for name in self._tokenizer_of.values()}, limited_by, limit)

    @property
    def _max_length(self) -> int | None:
        """The pipeline's own limit of tokens for its T5 or Gemma; None where only the tokenizer's own limit counts."""
        return call_default(self.pipeline_class, 'max_sequence_length')

    def fit_prompt(self, prompt: str) -> tuple[str, list[str]]:
        """The longest beginning of a prompt that the text encoders see entirely, and the words that were cut, see `fit_tokens`.

        Of several encoders the shortest limit counts; FLUX's CLIP, which makes no more than a summary, does not.

        Raises:
            RecipeError: not even the first word fits, or it holds a placeholder that is no learned word.
            ModelError: a tokenizer cannot be read.
        """
        self.check_placeholders(prompt)
        return self.tokens.fit(prompt)

    def check_placeholders(self, prompt: str) -> None:
        """Refuse (RecipeError) a prompt that holds something like '<cat>' which is no learned word."""
        self.tokens.check(prompt, self.words and self.words.file)

    def text_widths(self) -> dict[str, int]:
        """Text encoder -> values of a row of its table."""
        return {e: int(self.files.config(e).get('hidden_size', 512)) for e in self._encoders}  # a CLIP's, unless its config says more

    def check_learned(self, classes: Sequence[str]) -> None:
        """Refuse words and erasures that are another model's, lack one of these classes, or do not belong together.

        See `Words.check` and `Erasures.check`. A word that was learned on the model with its class erased says nothing to the model without, nor the
        other way round.

        Raises:
            ModelError, DataError: what does not fit.
        """
        if self.words is not None:
            self.words.check(self, self.text_widths(), classes)
        if self.erasures is not None:
            check_family(self.name, self.family, f'erasures = {str(self.erasures.folder)!r}')
            self.erasures.check(self, self.network_shapes(), classes)
        if self.words is not None:
            self.words.check_erasures(self.erasures, classes)

    def refuse_words(self, what: str) -> None:
        """Refuse a family that takes no learned words, with the reason.

        Args:
            what: was asked for, such as "words = 'x.safetensors'".

        Raises:
            ModelError: words do not work for this family.
        """
        if self._family.no_words:
            raise ModelError(f'{what}: {self.name!r} is a {self.family} pipeline: {self._family.no_words}.', 'Use Stable Diffusion 1 or 2, or SDXL.')

    def refuse_inpainting(self, what: str) -> None:
        """Refuse (ModelError) a network that runs only with a mask and a masked image, where there are none. what: was asked for, such as 'erasure'."""
        if self.inpaints:
            raise ModelError(f'{what}: {self.name!r} paints into masked images, and its network runs with a mask only.', 'Use an ordinary pipeline.')

    @property
    def draws_latents(self) -> bool:
        """Whether its autoencoder makes a distribution of latents of an image; else one point."""
        return self.tiny_vae is None and self._parts['vae'].__name__ == 'AutoencoderKL'

    def embedding_shape(self, tokens: int | None = None) -> EmbeddingShape:
        """See `Model.embedding_shape`: 5 tokens unless given.

        Raises:
            RecipeError: tokens is no whole number of 1 or more.
            ModelError: an inpainting pipeline.
        """
        self.refuse_inpainting('embeddings')
        width, pooled = self._family.widths(self._network_config)
        return EmbeddingShape(check_token_count(tokens, DEFAULT_TOKENS), width, pooled)

    def _weights(self) -> dict[str, list[str]]:
        """Component -> its weight files, of those that make images."""
        diffusers_parts = {c: self.files.weight_files(c) for c in (self._family.network, 'vae')}
        return diffusers_parts | {c: self.files.weight_files(c, 'transformers') for c in self._encoders}

    @property
    def has_safety_checker(self) -> bool:
        """Whether the pipeline brings one."""
        return self._part('safety_checker') is not None and self._part('feature_extractor') is not None

    def check_weights(self, safety: bool = False) -> None:
        """Look at the headers of all weight files of a folder; the network's tensors must be those that its config builds.

        Of a hub repository only the list of files is looked at: its weights are fetched by `load`.

        Args:
            safety: the safety checker will be asked, too.

        Raises:
            ModelError: a file or shard is missing, is a pickle, is cut short, or the first tensor that does not fit.
        """
        weights = self._weights()
        for encoder in self._encoders:
            self.files.config(encoder)
        if safety and self.has_safety_checker:
            weights['safety_checker'] = self.files.weight_files('safety_checker', 'transformers')
        tiny = self.tiny_vae.weight_files('') if self.tiny_vae else []
        if self.files.commit is None:
            shapes = {component: check_safetensors(self.files, paths) for component, paths in weights.items()}
            self._compare(shapes[self._family.network])
        if self.tiny_vae and self.tiny_vae.commit is None:
            check_safetensors(self.tiny_vae, tiny)

    def network_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the network's tensors by name, from its config."""
        return dict(_shapes(self._parts[self._family.network], json.dumps(self._network_config)))

    def _compare(self, found: dict[str, tuple[int, ...]]) -> None:
        """The network's tensors against its config."""
        for name, shape in self.network_shapes().items():
            if found.get(name) != shape:
                what = f'{name!r} is {found.get(name, "missing")}, the config asks for {shape}'
                raise ModelError(f'The weights of the {self._family.network} of {self.name!r} do not fit its config: {what}.', self.files.cure)

    def identity(self) -> dict[str, Any]:
        """What decides the pixels: plain JSON. The commit stands for the files of the hub, SHA-256 over all files that matter for those of a folder.

        Raises:
            ModelError: a file is missing.
        """
        found = _file_identity(self.files, self._own_files())
        if self.tiny_vae:
            found['tiny_vae'] = _file_identity(self.tiny_vae, [CONFIG, *self.tiny_vae.weight_files('')])
        if self.files.variant and self.files.commit:
            # A cache may hold the files without the variant only, and then those are taken.
            found['weights'] = [path for paths in self._weights().values() for path in paths]
        if self.words is not None:
            found['words'] = self.words.identity()
        if self.erasures is not None:
            found['erasures'] = self.erasures.identity()
        return found | {'variant': self.files.variant, 'image_size': list(self.image_size), 'licence': self.files.licence()}

    def origin(self, contents: bool = False) -> dict[str, Any]:
        """What of `identity` says which model it is, whatever its image size and what was learned for it: name and SHA-256, or commit of the hub.

        Args:
            contents: give the SHA-256 of a model of the hub as well, whose weights were fetched: it is then known again in a folder.

        Raises:
            ModelError: a file is missing.
        """
        found = _file_identity(self.files, self._own_files())
        return found | {'sha256': self.files.sha256(self._own_files())} if contents else found

    def has_origin(self, known: Mapping[str, Any]) -> bool:
        """Whether `known`, what `origin` said once, is this model's: equal content or equal commit, whatever its name."""
        now = self.origin()
        return any(known.get(key) == now[key] for key in ('sha256', 'revision') if key in now)

    def _own_files(self) -> list[str]:
        """The files that decide what the model makes."""
        weights = self._weights()
        small = [f for f in self.files.files if f == PIPELINE_INDEX or f.split('/')[0] in self._tokenizer_of.values()]
        small += [*(f'{c}/{CONFIG}' for c in weights), f'scheduler/{SCHEDULER_CONFIG}']
        return [*small, *(path for paths in weights.values() for path in paths)]


@functools.lru_cache(maxsize=16)
def _shapes(network: Any, config: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a class of networks has with a config, built once: recipes name a model many times. Not to be changed."""
    import torch

    with torch.device('meta'):  # costs no memory
        return {name: tuple(t.shape) for name, t in network.from_config(json.loads(config)).state_dict().items()}


def _file_identity(files: ModelFiles, paths: list[str]) -> dict[str, Any]:
    name = files.name if files.name.startswith(EMBEDDED) or files.commit else files.folder.resolve().name
    return {'name': name} | ({'revision': files.commit} if files.commit else {'sha256': files.sha256(paths)})
