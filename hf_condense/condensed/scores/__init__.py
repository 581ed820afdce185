"""What a set was measured to be worth: accuracies, those of single classes, and how they print as tables."""

from hf_condense.condensed.scores.evaluation import (
    EIGHT_BIT,
    HARD_LABELS,
    RELABELLED,
    SOFT_LABELS,
    Difference,
    Evaluation,
    Score,
    gathered,
)

__all__ = ["EIGHT_BIT", "HARD_LABELS", "RELABELLED", "SOFT_LABELS", "Difference", "Evaluation", "Score", "gathered"]
