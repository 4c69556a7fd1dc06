"""The probe's text, coloured by how far two groups differ on each token, or by one's loss."""

from __future__ import annotations

import base64
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_gamma.comparison.alignment import Comparison
from lit_gamma.trajectory.token_classes import CLASSES, NGRAMS

MOST_NUMBERS = 750_000
"""Losses (tokens × steps × groups) that a page holds, 2.7 bytes each; more tokens are cut off."""

LEVELS = 10
"""Shades of either colour."""

FULL = 2.0
"""Nats of difference in full colour; of one group it is its mean loss at the start."""


def probe_text(comparison: Comparison) -> dict[str, Any]:
    """What the page shows of the tokens.

    Args:
        comparison: The runs.

    Returns:
        ``blocks``: of each block its set, place and tokens (text, shade); ``data``: the
        numbers of the shown tokens, for the page's script; ``n_shown``.
    """
    n_steps, n_groups = len(comparison.steps), len(comparison.groups)
    tokens = comparison.tokens
    shown = _first_of_each_set(tokens["set"], max(1, MOST_NUMBERS // (n_steps * n_groups)))
    losses = np.stack([comparison.losses[of].mean(axis=0) for of in comparison.groups.values()])
    losses, tokens = losses[:, :, shown], tokens.iloc[shown]
    difference = losses[1, -1] - losses[0, -1] if n_groups > 1 else losses[0, -1]
    full = FULL if n_groups > 1 else max(float(np.nanmean(losses[0, 0])), 0.1)
    blocks: list[dict[str, Any]] = []
    cells = zip(
        tokens["set"].astype(str), tokens["block"], tokens["text"], tokens["token_id"],
        difference, strict=True,
    )  # fmt: skip
    for of_set, block, text, token_id, change in cells:
        if not blocks or (blocks[-1]["set"], blocks[-1]["block"]) != (of_set, block):
            blocks.append({"set": of_set, "block": block, "tokens": []})
        said = visible(text) if isinstance(text, str) else f"{token_id} "
        blocks[-1]["tokens"].append((said, shade(change, full)))
    return {
        "blocks": blocks,
        "n_shown": len(tokens),
        "data": _data(comparison, tokens, losses, full),
    }


def shade(difference: float, full: float = FULL) -> str:
    """The style sheet's class: ``a1`` .. for a loss below the reference's, ``b1`` .. above."""
    if not np.isfinite(difference):
        return ""
    level = min(LEVELS, round(abs(difference) / full * LEVELS))
    return f"{'a' if difference < 0 else 'b'}{level}" if level else ""


def visible(text: str) -> str:
    """Shows what has no shape of its own: control and format characters, ends of lines.

    A letter that would turn the direction of what follows, or end the page's element, must not
    reach the page as it is; the rest of the escaping is the template's.
    """
    return "".join(_shown(letter) for letter in text) or "∅"


def _shown(letter: str) -> str:
    if letter == "\n":
        return "↵\n"
    if ord(letter) < 32:
        return chr(0x2400 + ord(letter))
    hidden = unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "�" if hidden else letter


def _first_of_each_set(sets: Any, n: int) -> npt.NDArray[np.intp]:
    """Places of at most n tokens, equally many from the beginning of each set."""
    place = sets.groupby(sets, observed=True).cumcount()
    return np.flatnonzero(place < max(1, n // sets.nunique()))


def _data(
    comparison: Comparison, tokens: Any, losses: npt.NDArray[np.float32], full: float
) -> dict[str, Any]:
    classes = tokens["class"] if "class" in tokens else [""] * len(tokens)
    names = [c for c in CLASSES if c in set(classes)]
    return {
        "steps": comparison.steps.tolist(),
        "groups": list(comparison.groups),
        "losses": _packed(losses),
        "ngrams": _packed(tokens[list(NGRAMS)].to_numpy().T),
        "classes": names,
        "class": [names.index(c) if c in names else -1 for c in classes],
        "position": tokens["position"].tolist(),
        "token": tokens["token_id"].tolist(),
        "full": full,
        "levels": LEVELS,
    }


def _packed(values: npt.ArrayLike) -> str:
    """Thousandths as unsigned 16 bit little-endian, base64; 65535 for NaN."""
    thousandths = (np.asarray(values, float) * 1000).round().clip(0, 65534)
    whole = np.nan_to_num(thousandths, nan=65535).astype("<u2")
    return base64.b64encode(whole.tobytes()).decode()
