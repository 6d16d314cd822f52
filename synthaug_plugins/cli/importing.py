"""Commands that turn labelled data sets into folders of class folders, with masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synthaug_plugins.cli.app import app

if TYPE_CHECKING:
    from synthaug_plugins.annotations.instance import Reader

import_app = typer.Typer(name='import', help='Turn a labelled data set with masks into a folder of class folders.', no_args_is_help=True)
app.add_typer(import_app, rich_help_panel='Make images')

Out = Annotated[Path, typer.Option(help='New folder: images/<class>/, masks/<class>/ and import.json.', show_default=False)]
MinArea = Annotated[float, typer.Option(help='Leave out images whose largest instance covers less than this share of the image (0.01 is 1 %).')]
Link = Annotated[bool, typer.Option(help='Hard links to the images in place of copies.')]


@import_app.command()
def voc(
    root: Annotated[Path, typer.Argument(metavar='ROOT', help='The folder that holds JPEGImages, such as VOCdevkit/VOC2012.', show_default=False)],
    out: Out,
    split: Annotated[str, typer.Option(help='train, val or trainval: a list in ImageSets/Segmentation, or in ImageSets/Main.')] = 'train',
    min_area: MinArea = 0.0,
    link: Link = False,
) -> None:
    """Import a split of PASCAL VOC, or of a data set in its layout: the largest instance of an image gives its class and mask.

    synthaug import voc VOCdevkit/VOC2012 --split train --out data/voc
    """
    from synthaug_plugins.annotations.voc import VOC

    _import(VOC(root, split), out, min_area, link)


@import_app.command()
def coco(
    images: Annotated[Path, typer.Argument(metavar='IMAGES', help='The folder of images, such as train2017.', show_default=False)],
    annotations: Annotated[Path, typer.Argument(metavar='ANNOTATIONS', help='The instances file, such as instances_train2017.json.', show_default=False)],
    out: Out,
    min_area: MinArea = 0.0,
    link: Link = False,
) -> None:
    """Import images with COCO annotations: the largest instance of an image (no crowd) gives its class and mask.

    synthaug import coco train2017 annotations/instances_train2017.json --out data/coco
    """
    from synthaug_plugins.annotations.coco import COCO

    _import(COCO(images, annotations), out, min_area, link)


def _import(reader: Reader, out: Path, min_area: float, link: bool) -> None:
    from synthaug_plugins.annotations.importing import import_images

    print(f'{import_images(reader, out, min_area, link).describe()} in {out}')
    print(f"use it with --data {out / 'images'} and, to edit the object or the background only, masks=dict(folder='{out / 'masks'}')")
