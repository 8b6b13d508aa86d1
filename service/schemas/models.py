"""Response models; the OpenAPI document is generated from them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from model.calibration.ood import WARNINGS as CHECK_WARNINGS
from model.images.dicom.header import WARNINGS as DICOM_WARNINGS
from model.text.labeler import FINDINGS
from model.types import MAX_TOP_K, Label
from service.schemas.annotations import Annotations
from service.schemas.examples import (
    CASE_EXAMPLE,
    HEALTH_EXAMPLE,
    PRIOR_EXAMPLE,
    PROBLEM_EXAMPLE,
    REPORT_EXAMPLE,
    STUDY_REPORT_EXAMPLE,
)

MAX_SENTENCES = 1024  # a draft has at most 1,024 tokens
MAX_WARNINGS = 100
_MAX_GRID = 256  # patches on a side, cases that the model read
_MAX_STAGES = 32
MAX_INSTANCES = 1_000  # of a study

Labels = Annotated[dict[str, Label | None], Field(max_length=len(FINDINGS))]
Pictures = Annotated[
    dict[str, str],
    Field(
        max_length=2,
        description="View -> path of a small picture, relative to this service; empty where there is none.",
    ),
]
Row = Annotated[list[float], Field(max_length=_MAX_GRID)]
_GRIDS = "rows from top to bottom, columns from left to right as in that image, even if its view was corrected."

EDITED = "edited"  # code of the warning that a reader changed the findings
_WARNINGS = [
    *("missing_view", "no_retrieval", "texts_not_available", "empty_draft", "unsupported_sentence"),
    *CHECK_WARNINGS,
    *DICOM_WARNINGS,
    *("refine_off", "refine_failed", "refine_added", "refine_dropped", "refine_moved", EDITED),
]


class ResponseModel(BaseModel):
    """Base of all responses: frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class AttentionOut(ResponseModel):
    """The decoder's attention for one sentence. All weights of a sentence sum to 1."""

    patches: Annotated[
        dict[str, Annotated[list[Row], Field(max_length=_MAX_GRID)]],
        Field(
            max_length=2,
            description=f"Form field of an image (frontal, lateral) -> grid of weights, {_GRIDS}",
        ),
    ]
    cases: Annotated[
        list[float], Field(max_length=_MAX_GRID, description="Weights of the K cases that the model reads, by rank.")
    ]


class EvidenceOut(ResponseModel):
    """Where the images speak for or against one finding of a sentence: its class activation map.

    All findings, sentences and views share one scale. For each view, the sum of its numbers and a
    constant of the finding is the finding's logit minus three quarters of the mean logit of the
    13 findings.
    """

    finding: Annotated[
        str,
        Field(
            description="Finding of the sentence that the images support most; if it denies all its findings, the "
            "one that they support least."
        ),
    ]
    patches: Annotated[
        dict[str, Annotated[list[Row], Field(max_length=_MAX_GRID)]],
        Field(
            max_length=2,
            description="Form field of an image -> grid of contributions, as in attention.patches: "
            "positive for the finding, negative against it.",
        ),
    ]


class SentenceOut(ResponseModel):
    """One sentence of the draft."""

    text: str
    confidence: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="With a calibration: probability that the true report supports the sentence, measured on "
            "validation studies. Else the geometric mean of its word probabilities. Not the probability of a finding.",
        ),
    ]
    labels: Annotated[
        dict[str, Label],
        Field(max_length=len(FINDINGS), description="Findings that the sentence mentions, with their label."),
    ]
    supported: Annotated[
        bool | None,
        Field(
            description="Whether a case or the images support each present or possible finding; null without such a "
            "finding or without a calibration."
        ),
    ] = None
    attention: Annotated[
        AttentionOut | None,
        Field(description="With include=attention, if the writer of the bundle has attention; null otherwise."),
    ] = None
    evidence: Annotated[
        EvidenceOut | None,
        Field(
            description="With include=evidence, if the sentence names a finding and the bundle classifies findings; "
            "null otherwise."
        ),
    ] = None

    show_confidence: Annotated[
        bool,
        Field(
            description="Whether readers may see the confidence: it separates right from wrong sentences of this "
            "kind, the sentence denies nothing in not_assessed, and no image is unusual."
        ),
    ] = True


class ReferenceCaseOut(ResponseModel):
    """A training case or an added case whose report embedding is near the image embedding."""

    rank: Annotated[int, Field(ge=1, le=MAX_TOP_K)]
    case_id: str
    similarity: Annotated[float, Field(description="Cosine of image and report embedding, -1 to 1.")]
    findings: Annotated[
        str | None,
        Field(
            description="The case's findings; null if the bundle has no texts. "
            "[redacted] replaces words that the archive redacted."
        ),
    ]
    labels: Labels
    annotations: Annotated[Annotations, Field(description="Mentions in its text.")] = []
    source_url: str | None
    images: Pictures


class CaseResponse(ResponseModel):
    """A reference case."""

    model_config = ConfigDict(json_schema_extra={"examples": [CASE_EXAMPLE]})

    case_id: str
    findings: Annotated[str | None, Field(description="As in the reference cases of a draft.")]
    labels: Annotated[Labels, Field(description="14 CheXpert findings read from the text; null: not mentioned.")]
    annotations: Annotated[Annotations, Field(description="Mentions in its text.")] = []
    source_url: str | None
    images: Pictures
    added: Annotated[
        bool, Field(description="Whether it was added by POST /cases; otherwise it belongs to the bundle.")
    ]


class ImageCheckOut(ResponseModel):
    """Results of the calibrated checks of one image."""

    view: Annotated[Literal["frontal", "lateral"], Field(description="The view as which the model read it.")]
    frontal: Annotated[float, Field(ge=0, le=1, description="Probability that the image is a frontal, not a lateral.")]
    unusual: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of the calibration's radiographs that are less unusual (out-of-distribution "
            "percentile).",
        ),
    ]


class RefinedOut(ResponseModel):
    """The draft, rewritten by the configured language model."""

    text: str
    model: Annotated[str, Field(description="Name of the language model, as configured.")]


class WarningOut(ResponseModel):
    """A warning for the reader."""

    code: Annotated[str, Field(examples=_WARNINGS)]
    message: str


class FindingRecordOut(ResponseModel):
    """Validation studies with a finding, drafts that called it, and how many of these were right."""

    studies: Annotated[int, Field(ge=0)]
    called: Annotated[int, Field(ge=0)]
    right: Annotated[int, Field(ge=0)]


class ModelInfo(ResponseModel):
    """The model of a draft; ``digest`` identifies its whole content."""

    name: str
    digest: Annotated[str, Field(description="SHA-256 of the bundle's MANIFEST.json, hex.")]
    backbone: str
    image_size: Annotated[int, Field(description="Side in pixels of the model's square input.")]
    retrieval_k: Annotated[int | None, Field(description="Reference cases the model reads; null: no retrieval.")]
    beam_size: Annotated[int, Field(description="Default beam size.")]
    hydrated: Annotated[bool, Field(description="Whether this is a copy with restored report texts.")]
    trained_on: dict[str, JsonValue]
    licence: str
    findings: Annotated[
        dict[str, FindingRecordOut] | None,
        Field(max_length=len(FINDINGS), description="Track record of each finding; null if the bundle has none."),
    ] = None


class ReportResponse(ResponseModel):
    """A findings draft with its evidence."""

    model_config = ConfigDict(json_schema_extra={"examples": [REPORT_EXAMPLE]})

    report_id: Annotated[str, Field(description="Random UUID of this response, which is not stored.")]
    findings: Annotated[str, Field(description="The draft: the sentences, joined.")]
    sentences: Annotated[list[SentenceOut], Field(max_length=MAX_SENTENCES)]
    labels: Annotated[Labels, Field(description="14 CheXpert findings read from the draft; null: not mentioned.")]
    annotations: Annotated[Annotations, Field(description="Mentions of findings in the draft.")] = []
    finding_probabilities: Annotated[
        dict[str, Annotated[float, Field(ge=0, le=1)]] | None,
        Field(
            max_length=len(FINDINGS),
            description="Calibrated probability of each finding by the classifier, where validation studies allow a "
            "fit; null without a track record.",
        ),
    ] = None
    not_assessed: Annotated[
        list[str],
        Field(
            max_length=len(FINDINGS),
            description="Findings that the draft denies, although no validation draft stated them correctly.",
        ),
    ] = []
    reference_cases: Annotated[
        list[ReferenceCaseOut], Field(max_length=MAX_TOP_K, description="Nearest first, top_k of them.")
    ]
    image_checks: Annotated[
        list[ImageCheckOut],
        Field(max_length=2, description="One for each image, frontal first; empty if the bundle has no calibration."),
    ]
    refined: Annotated[RefinedOut | None, Field(description="With refine=true, if it succeeded; null otherwise.")] = (
        None
    )
    warnings: Annotated[list[WarningOut], Field(max_length=MAX_WARNINGS)]
    model: ModelInfo
    timings_ms: Annotated[
        dict[str, float],
        Field(max_length=_MAX_STAGES, description="Milliseconds by stage; total is the whole request."),
    ]
    disclaimer: str


class StudyImageOut(ResponseModel):
    """An instance of the study that was read."""

    view: Annotated[Literal["frontal", "lateral"], Field(description="The view as which it was chosen.")]
    sop_instance_uid: str
    series_instance_uid: str


class LeftOutOut(ResponseModel):
    """An instance of the study that was not read."""

    sop_instance_uid: Annotated[str, Field(description="Empty if the PACS lists an invalid one.")]
    series_instance_uid: str
    code: Annotated[str, Field(examples=["repeated_view", "for_processing", "not_a_chest"])]
    reason: str


class StoredReportOut(ResponseModel):
    """The structured report of this study, bundle and set of images in the PACS."""

    sop_instance_uid: str
    series_instance_uid: str
    status: Annotated[
        Literal["stored", "already_stored"],
        Field(description="already_stored: the PACS had it; the draft of this response was not stored again."),
    ]


class StudyOut(ResponseModel):
    """The study of a PACS, and what was read of it."""

    study_instance_uid: str
    images: Annotated[list[StudyImageOut], Field(max_length=2)]
    left_out: Annotated[list[LeftOutOut], Field(max_length=MAX_INSTANCES)]
    stored: Annotated[StoredReportOut | None, Field(description="With store=true; null otherwise.")] = None


class StudyReportResponse(ReportResponse):
    """A findings draft of a study of the PACS."""

    model_config = ConfigDict(json_schema_extra={"examples": [STUDY_REPORT_EXAMPLE]})

    study: StudyOut


class PriorStudyOut(ResponseModel):
    """The newest earlier chest study of the patient."""

    study_instance_uid: str
    study_date: Annotated[str, Field(description="YYYY-MM-DD.")]
    views: Annotated[list[Literal["frontal", "lateral"]], Field(max_length=2)]


class PriorResponse(ResponseModel):
    """The search for an earlier study, for a reader; no draft uses it."""

    model_config = ConfigDict(json_schema_extra={"examples": [PRIOR_EXAMPLE]})

    status: Annotated[
        Literal["found", "none", "not_identified", "off"],
        Field(
            description="none: none of the five newest earlier studies has a chest radiograph; "
            "not_identified: no usable PatientID or StudyDate, or the PACS does not find it; "
            "off: REPORT_DICOMWEB_PRIOR=false."
        ),
    ]
    study_date: Annotated[str | None, Field(description="Of the current study, YYYY-MM-DD; null if unknown.")] = None
    prior: PriorStudyOut | None = None


class BundleInfo(ResponseModel):
    """The bundle that is served."""

    name: str
    digest: str
    hydrated: bool


class QueueInfo(ResponseModel):
    """Requests in flight, requests that wait for the model, and the limit on requests in flight."""

    depth: Annotated[int, Field(ge=0)]
    waiting: Annotated[int, Field(ge=0)]
    capacity: Annotated[int, Field(ge=1)]


class HealthResponse(ResponseModel):
    """The service is ready."""

    model_config = ConfigDict(json_schema_extra={"examples": [HEALTH_EXAMPLE]})

    status: Literal["ready"]
    device: str
    bundle: BundleInfo
    cases: Annotated[int | None, Field(description="Reference cases in the index; null: no retrieval.")]
    texts: Annotated[bool, Field(description="Whether any reference case has its text.")]
    refine: Annotated[bool, Field(description="Whether a language model is configured that rewrites drafts.")] = False
    queue: QueueInfo
    model: ModelInfo


class AliveResponse(ResponseModel):
    """The process is alive."""

    status: Literal["alive"]


class ProblemDetails(ResponseModel):
    """An error, RFC 9457. ``code`` is stable; ``detail`` gives the cause and the remedy."""

    model_config = ConfigDict(json_schema_extra={"examples": [PROBLEM_EXAMPLE]})

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    code: str
    field: Annotated[str | None, Field(description="The wrong form field, if any.")] = None
