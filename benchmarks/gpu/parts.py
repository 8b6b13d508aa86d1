"""The parts of ``python -m benchmarks gpu``, the most important first.

The modules that measure are imported by the part that needs them: a package that this machine lacks
fails that part alone, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.gpu.part import Job, Outcome, Part, speed_table

PRESETS = {"retrieval-scst": "DenseNet-121, published size", "baseline": "ResNet-101, published size",
           "compact": "compact preset"}  # fmt: skip
DRY_PRESETS = {"smoke": "smoke preset"}
STAGES = {"ce": "cross-entropy", "scst": "SCST", "pretrain": "pretraining"}
BATCHES, DRY_BATCHES = (8, 16), (2,)
# what the parts import, loaded once by the process that they are forked from
PRELOADED = ("benchmarks.published_size", "benchmarks.gpu.drafts", "benchmarks.gpu.stages",
             "benchmarks.gpu.throughput", "benchmarks.serving", "benchmarks.index", "benchmarks.cider")  # fmt: skip


def parts(*, dry_run: bool) -> tuple[Part, ...]:
    """All parts, in the order in which they run."""
    presets, batches = (DRY_PRESETS, DRY_BATCHES) if dry_run else (PRESETS, BATCHES)
    return (
        Part("drafts", "Drafts of drawn studies, CUDA against CPU, float32", 3, _drafts),
        Part("writing", "Speed table: writing", 4, _writing),
        Part("training", "Speed table: a training step", 2, _training),
        *(
            Part(f"{preset}-{stage}", f"Training, bfloat16: {what} of the {named}", 1, _stage(preset, stage))
            for preset, named in presets.items()
            for stage, what in STAGES.items()
        ),
        *(
            Part(f"service-{size}", f"Throughput of the service, batches of {size}", 2, _throughput(size))
            for size in batches
        ),
        Part("serving", "Speed table: the service", 2, _serving),
        Part("index", "Speed table: search, which runs on the CPU", 0.5, _index),
        Part("cider", "Speed table: CIDEr-D, which runs on the CPU", 1, _cider),
    )


def _drafts(job: Job) -> Outcome:
    from benchmarks.gpu import drafts

    return drafts.run(job)


def _writing(job: Job) -> Outcome:
    from benchmarks import published_size
    from benchmarks.measure import read_machine

    size = published_size.TINY if job.dry_run else published_size.PUBLISHED
    machine = read_machine(job.torch_device, side=size.matmul)
    outcome = speed_table(published_size.decoding_rows(machine, job.torch_device, size))
    return Outcome(outcome.head, outcome.rows, [machine.describe()], outcome.values)


def _training(job: Job) -> Outcome:
    from benchmarks import published_size
    from benchmarks.measure import read_machine

    size = published_size.TINY if job.dry_run else published_size.PUBLISHED
    machine = read_machine(job.torch_device, side=size.matmul)
    return speed_table(published_size.training_rows(machine, job.torch_device, size))


def _stage(preset: str, stage: str) -> Callable[[Job], Outcome]:
    return partial(_train, preset=preset, stage=stage)


def _train(job: Job, *, preset: str, stage: str) -> Outcome:
    from benchmarks.gpu import stages

    return stages.run(job, preset, stage)


def _throughput(size: int) -> Callable[[Job], Outcome]:
    return partial(_serve, size=size)


def _serve(job: Job, *, size: int) -> Outcome:
    from benchmarks.gpu import throughput

    return throughput.run(job, size)


def _serving(job: Job) -> Outcome:
    from benchmarks import serving

    with job.bundle() as bundle:
        return speed_table(serving.rows(job.torch_device, bundle=bundle, rounds=2 if job.dry_run else serving.ROUNDS))


def _index(job: Job) -> Outcome:
    from benchmarks import index

    return speed_table(index.rows())


def _cider(job: Job) -> Outcome:
    from benchmarks import cider

    return speed_table(cider.rows(reports=60 if job.dry_run else cider.REPORTS))
