"""The study's presets as an ablation: rows that differ by one change each, several seeds, one table.

    python -m training.ablation --root DIR --out DIR --seeds 3
    python -m training.ablation --root DIR --out DIR --scale cpu --backbone-weights none --device cpu
        --external-labels labels.csv --external-images DIR

``rows`` says what a row is, ``plan`` which cells there are, ``cell`` trains and scores one of them in a process of its
own, ``runner`` runs what is left, ``table``, ``report`` and ``plot`` write the results. docs/ablation.md.
"""
