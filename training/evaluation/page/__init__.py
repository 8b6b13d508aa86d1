"""The page of an evaluation: ``report.html`` and ``report.md`` with plots, tables and a gallery of studies.

It holds radiographs and report texts, so its folder tells git to ignore all of it.
"""

from training.evaluation.page.gallery import EvaluatedSplit
from training.evaluation.page.write import write_page

__all__ = ["EvaluatedSplit", "write_page"]
