"""Where a CLIP's files are: folders, open_clip's architectures with tags or weight files, the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthaug_plugins.errors import ModelError, first_line, nearest
from synthaug_plugins.weights import CARD, EMBEDDED, embedded_folder, read_json

CONFIG = 'open_clip_config.json'
LOCAL, HUB = 'local-dir:', 'hf-hub:'
# The order in which open_clip looks for weights in a folder.
WEIGHTS = (
    *('open_clip_model.safetensors', 'open_clip_pytorch_model.safetensors', 'open_clip_pytorch_model.bin', 'open_clip_pytorch_model.pth'),
    *('model.safetensors', 'pytorch_model.bin', 'pytorch_model.pth', 'model.pth'),
)
HUB_WEIGHTS = ('open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
_PICKLES = ('.pt', '.pth', '.bin', '.ckpt')
_NO_TOKENIZER = frozenset({CONFIG, CARD, 'config.json', 'preprocessor_config.json', 'model.safetensors.index.json'})


@dataclass(frozen=True)
class ClipSource:
    """Files and config of one model, on this disk.

    Attributes:
        name: as open_clip knows it: an architecture, or 'local-dir:FOLDER'.
        label: what records call it.
        config: open_clip's `model_cfg`, with `quick_gelu` settled.
        preprocess: open_clip's `preprocess_cfg` where it differs from the architecture's.
        weights: the weight file.
        folder: the model folder, None for an architecture.
        hub_tokenizer: name of a tokenizer on the hub; '' where the folder or open_clip has it.
        tokenizer_files: files of the folder's own tokenizer.
        licence: what the folder's card says.
    """

    name: str
    label: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path
    folder: Path | None = None
    hub_tokenizer: str = ''
    tokenizer_files: tuple[Path, ...] = ()
    licence: str | None = None


def find_clip(model: str, pretrained: str | None, revision: str | None, quick_gelu: bool | None) -> ClipSource:
    """Settle what `ClipModel`'s arguments mean; fetch what is missing from the hub.

    Raises:
        ModelError: unknown, incomplete, contradictory, or not to be had without network.
    """
    for key, value, kind in (('model', model, str), ('pretrained', pretrained, str), ('revision', revision, str), ('quick_gelu', quick_gelu, bool)):
        if not (isinstance(value, kind) or (value is None and key != 'model')):
            raise ModelError(f'{key} = {value!r} is of the wrong kind.', 'Give text.' if kind is str else 'Give True or False.')
    path = Path(model.removeprefix(LOCAL)).expanduser()
    # A mere name may be an architecture though some folder here is called so too.
    whole = model.startswith((EMBEDDED, LOCAL, HUB)) or (path / CONFIG).is_file() or (path.is_dir() and '/' in model)
    if whole and (pretrained is not None or quick_gelu is not None):
        raise ModelError(f'model = {model!r} brings its own weights and activation.', 'Leave out pretrained and quick_gelu.')
    if revision is not None and not model.startswith(HUB) and (whole or (pretrained is not None and _is_file(pretrained))):
        raise ModelError(f'revision = {revision!r} means nothing for {model!r}, which is on this disk.', 'Leave it out.')
    if model.startswith(HUB):
        return _from_hub(model.removeprefix(HUB), revision)
    if model.startswith(EMBEDDED):
        return replace(_from_folder(embedded_folder(model), model), label=model)
    if whole:
        return _from_folder(path, model)
    if model.startswith(('.', '/', '~')) or '\\' in model:
        raise ModelError(f'model = {model!r}: there is no such folder.', f'Give a folder with {CONFIG} and weights.')
    return _architecture(model.replace('/', '-'), pretrained, revision, quick_gelu)


def _is_file(name: str) -> bool:
    return Path(name).suffix in (*_PICKLES, '.safetensors')


def _from_folder(folder: Path, model: str) -> ClipSource:
    if not (folder / CONFIG).is_file():
        raise ModelError(f'model = {model!r}: {CONFIG} is missing in {str(folder)!r}.', "Give a folder in open_clip's layout.")
    config, preprocess = _model_config(folder / CONFIG)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ModelError(f'model = {model!r}: there are no weights in {str(folder)!r}.', f'open_clip calls them {WEIGHTS[0]}.')
    files: tuple[Path, ...] = ()
    if config['text_cfg'].get('hf_tokenizer_name'):
        files = tuple(sorted(p for p in folder.iterdir() if p.suffix in ('.json', '.txt', '.model') and p.name not in _NO_TOKENIZER))
        if not any(p.name in ('tokenizer.json', 'vocab.json', 'vocab.txt') or p.suffix == '.model' for p in files):
            raise ModelError(f'model = {model!r}: the tokenizer is missing in {str(folder)!r}.', 'Save it there (tokenizer.save_pretrained(folder)).')
    licence = read_json(folder / CARD).get('licence') if (folder / CARD).is_file() else None
    return ClipSource(f'{LOCAL}{folder}', folder.resolve().name, config, preprocess, weights, folder, tokenizer_files=files, licence=licence)


def _model_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    content = read_json(path)
    config = content.get('model_cfg')
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ('vision_cfg', 'text_cfg')):
        raise ModelError(f'{str(path)!r} describes no CLIP.', 'It needs model_cfg with embed_dim, vision_cfg and text_cfg.')
    return config, dict(content.get('preprocess_cfg') or {})


def _architecture(model: str, pretrained: str | None, revision: str | None, quick_gelu: bool | None) -> ClipSource:
    import open_clip

    config = open_clip.get_model_config(model)
    if config is None:
        raise ModelError(
            f"model = {model!r} is neither a folder with {CONFIG} nor one of open_clip's architectures.", nearest(model, open_clip.list_models(), 5)
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        if 'openai' not in tags:
            raise ModelError(f'model = {model!r} says no weights.', f'Set pretrained to a weight file{" or one of: " + ", ".join(tags) if tags else ""}.')
        pretrained = 'openai'
    if _is_file(pretrained):
        weights = Path(pretrained).expanduser()
        if not weights.is_file():
            raise ModelError(f'pretrained = {pretrained!r} does not exist.', 'Give a weight file.')
        published_both = bool(open_clip.list_pretrained_tags_by_model(f'{model}-quickgelu'))
        if quick_gelu is None and not config.get('quick_gelu') and published_both:
            raise ModelError(
                f"pretrained = {pretrained!r}: {model!r} exists with and without OpenAI's approximate GELU, and a weight file does not tell.",
                'Set quick_gelu=True for weights by OpenAI, MetaCLIP and DFN, else False.',
            )
        if quick_gelu is False and config.get('quick_gelu'):
            raise ModelError(f"quick_gelu = False, but {model!r} is the architecture with OpenAI's approximate GELU.", 'Name the one without, or leave it out.')
        gelu = bool(config.get('quick_gelu') or quick_gelu)
        return ClipSource(model, f'{model}/{weights.name}', {**config, 'quick_gelu': gelu}, {}, weights)
    tag = open_clip.pretrained.get_pretrained_cfg(model, pretrained)
    if not tag:
        raise ModelError(f'pretrained = {pretrained!r} is no tag of {model!r} and no weight file.', nearest(pretrained, tags))
    if quick_gelu is not None:
        raise ModelError(f'quick_gelu = {quick_gelu}, but the tag {pretrained!r} says it.', 'Leave it out.')
    repository, _, file = tag['hf_hub'].rpartition('/')
    weights = fetch(repository, (f'{file.rpartition(".")[0]}.safetensors', file) if file else HUB_WEIGHTS, revision)
    preprocess = {key: value for key, value in tag.items() if key in ('mean', 'std', 'interpolation', 'resize_mode')}
    gelu = bool(config.get('quick_gelu') or tag.get('quick_gelu'))
    return ClipSource(model, f'{model}/{pretrained}', {**config, 'quick_gelu': gelu}, preprocess, weights)


def _from_hub(repository: str, revision: str | None) -> ClipSource:
    config_file = fetch(repository, (CONFIG,), revision)
    fetch(repository, HUB_WEIGHTS, revision)
    folder = config_file.parent  # the snapshot of one commit; weights lie beside the config
    config, preprocess = _model_config(config_file)
    weights = next(folder / name for name in WEIGHTS if (folder / name).is_file())
    tokenizer = config['text_cfg'].get('hf_tokenizer_name') or ''
    return ClipSource(f'{LOCAL}{folder}', f'{HUB}{repository}', config, preprocess, weights, folder, hub_tokenizer=tokenizer)


def fetch(repository: str, names: tuple[str, ...], revision: str | None) -> Path:
    """The first of the files that a repository of the Hugging Face hub has, from the cache or the network.

    Raises:
        ModelError: none of them can be had.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    failure: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except LocalEntryNotFoundError as error:  # no network: perhaps the other file is in the cache
            failure = error
        except EntryNotFoundError as error:
            failure = failure or error
        except Exception as error:  # no such repository or revision, no access, a bad name
            failure = error
            break
    offline = constants.HF_HUB_OFFLINE or isinstance(failure, LocalEntryNotFoundError)
    cure = 'Fetch it once with network (HF_HUB_OFFLINE unset), or give a folder or file.' if offline else 'Check its name and revision.'
    reason = 'it is not in the cache, and the hub cannot be reached' if offline else first_line(failure)
    raise ModelError(f'{names[0]} of {repository!r} cannot be had: {reason}.', cure)


def model_and_tag(name: str) -> dict[str, Any]:
    """'RN50/openai' as `ClipModel`'s arguments, `{'model': 'RN50', 'pretrained': 'openai'}`; folders, embedded and hub names as they are.

    >>> model_and_tag('ViT-B-16/laion2b_s34b_b88k'), model_and_tag('embedded:digits_clip')
    ({'model': 'ViT-B-16', 'pretrained': 'laion2b_s34b_b88k'}, {'model': 'embedded:digits_clip'})
    """
    architecture, slash, tag = name.rpartition('/')
    if not slash or name.startswith((EMBEDDED, LOCAL, HUB, '.', '/', '~')) or Path(name).expanduser().is_dir():
        return {'model': name}
    return {'model': architecture, 'pretrained': tag}
