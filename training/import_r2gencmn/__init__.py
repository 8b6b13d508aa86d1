"""Turn a published R2GenCMN checkpoint into a bundle that is served and scored like any other.

    python -m training.import_r2gencmn --checkpoint model.pth --annotation annotation.json --out DIR

The checkpoint is ``{"epoch", "state_dict", "optimizer", "monitor_best"}``, as saved by the
published trainer. It holds no vocabulary and no number of heads: the vocabulary is rebuilt from the
annotation by the published rule, the heads have their published defaults unless given as options.
The bundle stores where the published model differs from ours: its normalisation, its positions, its
bilinear resize, images in the order of the data set's files, beam search and trigram penalty.
"""

from training.import_r2gencmn.checkpoint import read_checkpoint
from training.import_r2gencmn.convert import Published, import_model
from training.r2gencmn import PUBLISHED_DECODING

__all__ = [
    "PUBLISHED_DECODING",
    "Published",
    "import_model",
    "read_checkpoint",
]
