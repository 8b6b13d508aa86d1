"""Reports of validation studies while training, and the metric by which ``ce`` and ``scst`` select
an epoch.

``selection`` is CIDEr plus label F1 (micro, 13 findings), each minus its expectation when the same
reports are permuted across the studies (``training.scoring.permutation_across_studies``). One report
for all studies scores 0, whatever it contains. By CIDEr plus label F1 alone a good constant report
would win against an early epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from model.decoding.generate import generate
from training.data.studies import Study
from training.scoring.metrics import comparable_pairs, validation_scores
from training.scoring.permutation_across_studies import expected_under_permutation, lift_over_permutation
from training.stages.common import ReportGenerator, retrieve
from training.trainer.context import RunContext

GENERATE_BATCH = 32


@torch.inference_mode()
def write_reports(generator: ReportGenerator, studies: Sequence[Study], context: RunContext) -> list[str]:
    """Reports of studies as lower-case tokens joined by spaces."""
    model, tokenizer = generator.model, generator.tokenizer
    model.eval()
    texts: list[str] = []
    for start in range(0, len(studies), GENERATE_BATCH):
        batch = studies[start : start + GENERATE_BATCH]
        with context.autocast():
            patches = generator.patches.patches(batch, None)
            cases, case_mask = retrieve(model, generator.index, patches, [study.study_id for study in batch])
            embedded = model.embed_study(patches) if generator.index is not None else None
            generated = generate(model, model.encode(patches, cases, case_mask), tokenizer, generator.decoding,
                                 study=embedded, findings=model.findings(patches), mbr_table=generator.mbr)  # fmt: skip
        texts += [tokenizer.decode(row) for row in generated.ids.tolist()]
    return texts


def validate_generation(
    generator: ReportGenerator, studies: Sequence[Study], train_reports: Sequence[str], context: RunContext,
    *, as_served: bool = False,
) -> tuple[dict[str, float], list[str]]:  # fmt: skip
    """Write a report for each study and score the reports.

    The reports are decoded by MBR if the bundle decodes by MBR, else greedily. With ``as_served`` they are decoded by
    the method of the bundle.

    Returns:
        The scores, with ``chance_…`` (expected under permutation) and ``selection``; and the reports.
    """
    if generator.mbr is None and not as_served:
        generator = replace(generator, decoding=generator.decoding.model_copy(update={"method": "greedy"}))
    texts = write_reports(generator, studies, context)
    pairs = comparable_pairs(zip((study.reference for study in studies), texts, strict=True), train_reports,
                             generator.protocol)  # fmt: skip
    scores, by_chance = validation_scores(pairs), expected_under_permutation(pairs)
    return {
        **scores,
        "chance_CIDEr": by_chance["CIDEr"],
        "chance_label_f1": by_chance["label_f1_micro"],
        "selection": lift_over_permutation(scores, by_chance),
    }, texts
