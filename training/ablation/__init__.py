"""The study's presets as an ablation: rows that differ by one change each, several seeds, one table.

    python -m training.ablation --root DIR --out DIR --seeds 3
    python -m training.ablation --root DIR --out DIR --scale cpu --backbone-weights none --device cpu
        --external-labels labels.csv --external-images DIR

``rows`` defines the rows, ``plan`` the cells; ``cell`` trains and scores one of them in a separate process, ``runner``
runs the unfinished ones, ``table``, ``report`` and ``plot`` write the results. See docs/results.md.
"""
