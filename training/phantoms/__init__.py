"""Chest phantoms: drawn radiographs of no patient, with reports of what was drawn.

Tests, the smoke training and the pictures in the documentation use them, so none of these needs a
patient's image or words.

    python -m training.phantoms --out DIR --studies N        # a data set, laid out like the Open-i collection
    python -m training.phantoms --examples docs/images       # the README's radiographs
"""

from training.phantoms.dataset import write_phantom_root
from training.phantoms.study import PHANTOM_FINDINGS, PhantomStudy, make_phantom

__all__ = ["PHANTOM_FINDINGS", "PhantomStudy", "make_phantom", "write_phantom_root"]
