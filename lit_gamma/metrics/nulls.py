"""What the metrics read on random weights: n×d matrices of i.i.d. Gaussian entries.

Plain floats, independent of the entries' scale. A metric divided by its null is 1 for random
weights. `mean_cosine` is absent (its null is 0), and the null of `opposed_fraction` is half that of
`aligned_fraction`.
"""

import math
from functools import cache

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(256)
_MEAN_TRACY_WIDOM = -1.2065335745820  # order 1; Bornemann, Markov Process. Relat. Fields 16, 2010


def _check_sizes(*sizes: int) -> None:
    if min(sizes) < 1:
        raise ValueError(f"sizes must be positive, got {sizes}")


def null_mean_squared_cosine(d: int) -> float:
    """Returns E[cos²] = 1/d between independent Gaussian rows of d entries.

    Raises:
        ValueError: If d is not positive.

    Example:
        >>> null_mean_squared_cosine(4)
        0.25
    """
    _check_sizes(d)
    return 1 / d


def null_mean_absolute_cosine(d: int) -> float:
    """Returns E|cos| = Γ(d/2) / (√π Γ((d+1)/2)) ≈ √(2/(πd)) between Gaussian rows of d entries.

    The first absolute moment of the density in `null_aligned_fraction`.

    Raises:
        ValueError: If d is not positive.

    Example:
        >>> round(null_mean_absolute_cosine(3), 6)  # A uniform cosine.
        0.5
    """
    _check_sizes(d)
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


@cache
def null_aligned_fraction(d: int, threshold: float = 0.9) -> float:
    """Returns P(``|cos|`` > threshold) between independent Gaussian rows of d entries.

    The cosine has density ∝ (1-x²)^((d-3)/2) on [-1, 1] (Muirhead, "Aspects of Multivariate
    Statistical Theory", 1982, section 1.5), which x = cos θ turns into sin^(d-2) θ, without a
    singularity at d = 2. Gauss-Legendre quadrature, to a relative 2e-7; 0 where it underflows, as
    from d = 900 on at a threshold of 0.9.

    Args:
        d: Entries per row.
        threshold: Cosine in [0, 1].

    Raises:
        ValueError: If d is not positive or the threshold is outside [0, 1].

    Example:
        >>> round(null_aligned_fraction(3, 0.9), 6)  # A uniform cosine.
        0.1
    """
    _check_sizes(d)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    if d == 1 or threshold == 1:
        return float(threshold < 1)
    half = math.acos(threshold) / 2
    log_integral_to_right_angle = (
        math.log(math.pi) / 2 + math.lgamma((d - 1) / 2) - math.lgamma(d / 2) - math.log(2)
    )
    log_density = (d - 2) * np.log(np.sin(half * (_NODES + 1))) - log_integral_to_right_angle
    return float(half * np.sum(_WEIGHTS * np.exp(log_density)))


@cache
def null_effective_rank(n: int, d: int) -> float:
    """Returns the effective rank under the Marchenko-Pastur law; 0.805·n for a square matrix.

    With q = min/max of (n, d), squared singular values over max(n, d) have density
    √((λ₊-λ)(λ-λ₋)) / (2πqλ) between λ± = (1±√q)² (Marchenko & Pastur, 1967). The angle in
    λ = 1 + q + 2√q cos φ gives it the smooth form 2 sin²φ / (πλ) dφ on [0, π]. The effective rank
    of min(n, d) singular values s of that law is min(n, d) · E[s] · exp(-E[s ln s] / E[s]).

    The law is the limit of large matrices; sampled means are smaller by 0.1 % at 256×256, 0.4 % at
    64×64 and 2.2 % at 8×8. For min(n, d) = 1 the exact value 1 is returned.

    Args:
        n: Rows.
        d: Columns; (n, d) and (d, n) give the same.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> round(null_effective_rank(768, 768), 1)
        618.3
    """
    _check_sizes(n, d)
    smaller, q = min(n, d), min(n, d) / max(n, d)
    if smaller == 1:
        return 1.0
    angles = math.pi / 2 * (_NODES + 1)
    eigenvalues = 1 + q + 2 * math.sqrt(q) * np.cos(angles)
    density = _WEIGHTS * np.sin(angles) ** 2 / eigenvalues  # dφ/dnode · 2/π = 1
    values = np.sqrt(eigenvalues)
    mean = np.sum(density * values)
    return float(smaller * mean * np.exp(-np.sum(density * values * np.log(values)) / mean))


def null_participation_ratio(n: int, d: int) -> float:
    """Returns the harmonic mean of the participation ratio, (nd+2) / (n+d+1), exactly.

    ‖W‖_F is independent of W/‖W‖_F, hence E[1/PR] = E‖WᵀW‖_F² / E‖W‖_F⁴ with the Wishart moments
    nd(n+d+1) and nd(nd+2). The arithmetic mean is larger by 0.3 % at 16×16, 3.7 % at 2×2.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> null_participation_ratio(2, 2)
        1.2
    """
    _check_sizes(n, d)
    return (n * d + 2) / (n + d + 1)


def null_stable_rank(n: int, d: int) -> float:
    """Returns nd / E[s₁²], which tends to nd / (√n+√d)² for large matrices.

    The limit alone is 2 % too small at 256×256 and 5.5 % at 32×128, as s₁² stays below its edge.
    Its mean is taken to second order: μ - 1.2065·σ with a, b = √(n-½), √(d-½), μ = (a+b)² and
    σ = (a+b)·(1/a+1/b)^⅓ (Ma, "Accuracy of the Tracy-Widom limits for the extreme eigenvalues in
    white Wishart matrices", Bernoulli 18, 2012). That is within 0.3 % of sampled means from 16×16
    on and 0.7 % at 8×8, but 5 % too large at 4×4. For min(n, d) = 1 the exact value 1 is returned.

    Args:
        n: Rows.
        d: Columns; a transposed matrix has the same null.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> round(null_stable_rank(256, 256), 1)
        65.4
    """
    _check_sizes(n, d)
    if min(n, d) == 1:
        return 1.0
    a, b = math.sqrt(n - 0.5), math.sqrt(d - 0.5)
    scale = (a + b) * math.pow(1 / a + 1 / b, 1 / 3)
    return n * d / ((a + b) ** 2 + _MEAN_TRACY_WIDOM * scale)
