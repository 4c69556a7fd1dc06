"""Makes the pictures and pages of docs/gallery.md from four runs, which it trains if need be.

python benchmarks/gallery.py --text tinyshakespeare.txt
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from lit_gamma import trajectory

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = {
    ("anchor", "0.8"): "overview.png",
    ("anchor", "0.5"): "overview-anchor-usual.png",
    ("text", "0.8"): "overview-text.png",
    ("text", "0.5"): "overview-text-usual.png",
}
"""The picture of each run, by task and γ."""


def train(task: str, gamma: str, text: Path, runs: Path) -> Path:
    """Trains a run unless it has been, and returns its folder."""
    folder = runs / task / f"gamma{gamma}-seed1"
    if not (folder / "summary.json").exists():
        options = {"anchor": [], "text": [f"--data.data_files={text}", "--trainer.max_steps=300"]}
        lit_gamma(
            "fit",
            f"--config=configs/{task}.yaml",
            *options[task],
            f"--model.gamma={gamma}",
            f"--trainer.logger.init_args.save_dir={runs}",
        )
    return folder


def lit_gamma(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "lit_gamma", *arguments], check=True)


def draw(run: Path, title: str, to: Path) -> None:
    """Draws the overview in 128 colours, a third of the size."""
    drawn = BytesIO()
    trajectory.plot(run, title).savefig(drawn, dpi=100)
    Image.open(drawn).convert("RGB").quantize(128).save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="the text that two runs learn")
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"))
    args = parser.parse_args()
    for (task, gamma), picture in PICTURES.items():
        run = train(task, gamma, args.text, args.runs)
        draw(run, f"{task}, γ = {gamma}", DOCS / picture)
        lit_gamma("report", str(run), f"--out={DOCS}/_extra/reports/{task}-gamma{gamma}.html")


if __name__ == "__main__":
    main()
