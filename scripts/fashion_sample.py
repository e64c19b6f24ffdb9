"""Write the sample of Fashion-MNIST that ships: two image sheets, from the whole set.

Image 10 k + c of a split is the k-th image of class c in the order of the whole set, so every class
has equally many images and no labels are needed. Run `python -m scripts.fashion_sample [FOLDER]`
with the whole set in SGMGM_DATA.
"""

import sys
from pathlib import Path

from PIL import Image

from sgmgm import datasets
from sgmgm.utils.files import atomic_path


def sheet(split: str) -> Image.Image:
    """The sample of a split as one grey image, 40 images of 28 x 28 pixels in a row."""
    whole = datasets.load("fashion-mnist", split)
    classes, count = len(whole.classes), datasets.SAMPLE[split]
    firsts = [(whole.labels == c).nonzero()[: count // classes, 0] for c in range(classes)]
    chosen = [int(index[k]) for k in range(count // classes) for index in firsts]
    images = whole.images[chosen, 0, 2:-2, 2:-2]  # without the added border
    rows = images.unflatten(0, (-1, datasets.SHEET)).transpose(1, 2)
    return Image.fromarray(rows.flatten(0, 1).flatten(1).numpy())


def main(folder: Path) -> None:
    """Write `train.png` and `test.png` into a folder."""
    for split in datasets.SAMPLE:
        with atomic_path(folder / f"{split}.png") as partial:
            sheet(split).save(partial, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else datasets.SAMPLE_FOLDER)
