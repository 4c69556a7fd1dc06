"""Geometry of weight matrices: condensation, rank and size of neurons, and their random nulls.

The functions are pure and batched: they take tensors of shape (..., n, d) whose rows are neurons,
or the cosine matrix or singular values that several metrics of one layer share, and return one
value per matrix on the same device. The nulls are what they read on random Gaussian weights, and
the classes accumulate them the torchmetrics way. Besides, two of activations: the share of ε in a
norm, and where attention goes.
"""

from lit_gamma.metrics._matrix import exact_products
from lit_gamma.metrics.attention import (
    attention_entropy,
    attention_logits,
    attention_weights,
    first_token_mass,
    uniform_attention,
)
from lit_gamma.metrics.classes import (
    AlignedFraction,
    EffectiveRank,
    MeanAbsoluteCosine,
    MeanCosine,
    MeanSquaredCosine,
    ParticipationRatio,
    StableRank,
    UpdateRatio,
)
from lit_gamma.metrics.condensation import (
    aligned_fraction,
    cosine_matrix,
    mean_absolute_cosine,
    mean_cosine,
    mean_of_pairs,
    mean_squared_cosine,
    opposed_fraction,
    sorted_by_alignment,
)
from lit_gamma.metrics.gram import (
    column_grams,
    inverse_norms,
    sums_by_columns,
    sums_by_rows,
)
from lit_gamma.metrics.nulls import (
    null_aligned_fraction,
    null_effective_rank,
    null_mean_absolute_cosine,
    null_mean_squared_cosine,
    null_participation_ratio,
    null_stable_rank,
)
from lit_gamma.metrics.power_iteration import (
    gram_product,
    leading_block,
    next_block,
    ritz_matrix,
    spectral_norm_bounds,
)
from lit_gamma.metrics.product import null_product_ranks, singular_values_of_product
from lit_gamma.metrics.rank import (
    effective_rank,
    participation_ratio,
    ranks,
    singular_values,
    singular_values_of_gram,
    smaller_gram,
    stable_rank,
)
from lit_gamma.metrics.saturation import epsilon_share
from lit_gamma.metrics.size import (
    frobenius_norm,
    implied_gamma,
    max_row_norm,
    rms,
    spectral_norm,
    update_ratio,
)

__all__ = [
    "AlignedFraction",
    "EffectiveRank",
    "MeanAbsoluteCosine",
    "MeanCosine",
    "MeanSquaredCosine",
    "ParticipationRatio",
    "StableRank",
    "UpdateRatio",
    "aligned_fraction",
    "attention_entropy",
    "attention_logits",
    "attention_weights",
    "column_grams",
    "cosine_matrix",
    "effective_rank",
    "epsilon_share",
    "exact_products",
    "first_token_mass",
    "frobenius_norm",
    "gram_product",
    "implied_gamma",
    "inverse_norms",
    "leading_block",
    "max_row_norm",
    "mean_absolute_cosine",
    "mean_cosine",
    "mean_of_pairs",
    "mean_squared_cosine",
    "next_block",
    "null_aligned_fraction",
    "null_effective_rank",
    "null_mean_absolute_cosine",
    "null_mean_squared_cosine",
    "null_participation_ratio",
    "null_product_ranks",
    "null_stable_rank",
    "opposed_fraction",
    "participation_ratio",
    "ranks",
    "ritz_matrix",
    "rms",
    "singular_values",
    "singular_values_of_gram",
    "singular_values_of_product",
    "smaller_gram",
    "sorted_by_alignment",
    "spectral_norm",
    "spectral_norm_bounds",
    "stable_rank",
    "sums_by_columns",
    "sums_by_rows",
    "uniform_attention",
    "update_ratio",
]
