"""Writes docs/claims.md from what the claims' runs have come to.

    python -m lit_gamma claim C4 --jobs 2
    python benchmarks/claims.py

Reads ``runs/claims/<claim>/<preset>/claim.json`` of the largest preset that was run, smoke apart. A
claim whose runs are elsewhere keeps what the page says of it; those that were never run come last.
Beside the page go the claims' figures, and what the verdicts were made from, packed: the runs'
configs and summaries, and the tables that the parts measure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_gamma.comparison.claim_file import Claim, ClaimSweep, read_claim
from lit_gamma.comparison.claim_verdict import contrasts
from lit_gamma.comparison.findings import number

PRESETS = ("gpu", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"))
    parser.add_argument("--out", type=Path, default=Path("docs/claims.md"))
    args = parser.parse_args()
    claims = {path.stem: read_claim(path) for path in sorted(Path("configs/claims").glob("*.yaml"))}
    page = sections(args.out)
    for name, claim in claims.items():
        of_runs = section(claim, claims, args.runs, args.out.parent)
        page[name] = of_runs or page.get(name) or unrun(claim, claims)
    shown = sorted(sorted(page), key=lambda name: NOT_RUN in page[name])
    texts = (page[name] for name in shown if name in claims)
    args.out.write_text("\n\n".join([HEAD, *texts]) + "\n", encoding="utf-8")
    print(f"wrote {args.out}")


HEAD = """# Claims

What papers say of small initialization, each as a command with criteria that were committed before
its runs were made (`configs/claims/`); how a verdict is made is in
[training.md](training.md#claims). This page is written by `python benchmarks/claims.py` from the
claims' folders, nothing by hand. What a verdict was made from, the configs and summaries of its
runs and the tables that it reads, is packed beside it: unpacked in `runs/claims`, the same command
makes the verdict again with `--jobs 0`, and what was not run yet with `--jobs 2`. The losses of
single tokens, which C6 reads, are too large for that: C1's command makes them again."""


NOT_RUN = "Its runs were not made yet"


def sections(page: Path) -> dict[str, str]:
    """What the page says of each claim that was run."""
    found = page.read_text(encoding="utf-8").split("\n## ")[1:] if page.is_file() else []
    return {text.partition(":")[0]: f"## {text.strip()}" for text in found if NOT_RUN not in text}


def unrun(claim: Claim, claims: dict[str, Claim]) -> str:
    """The sentence, its command and the minutes that it takes."""
    typed = code(command(claim, "cpu", dict(used(claim, claims, "cpu"))))
    return f"{head(claim)}\n\n{NOT_RUN} ({claim.minutes['cpu']:g} minutes):\n\n{typed}"


def section(claim: Claim, claims: dict[str, Claim], runs: Path, docs: Path) -> str | None:
    """The sentence, its verdict, command, setting, table and figure; None without runs."""
    folders = [runs / claim.name / preset for preset in PRESETS]
    folder = next((path for path in folders if (path / "claim.json").is_file()), None)
    if folder is None:
        return None
    said: dict[str, Any] = json.loads((folder / "claim.json").read_text())
    sweeps = dict(used(claim, claims, folder.name))
    settings = [setting(label, said["sweeps"][label], of) for label, (_, of) in sweeps.items()]
    table = [COLUMNS, *(row(part) for part in said["parts"])]
    parts = [
        head(claim),
        verdict(said),
        code(said["command"]),
        "\n".join(settings),
        "\n".join(table),
    ]
    if (folder / "claim.svg").is_file():
        picture = f"claims-{claim.name}.svg"
        shutil.copy(folder / "claim.svg", docs / picture)
        parts.append(f"![What the first part measures]({picture})")
    archive = docs / f"claims/{claim.name}-{folder.name}.tar.xz"
    if packed := pack(claim, folder, runs, archive):
        parts.append(f"{OF_THE_RUNS}: [{packed.name}]({packed.relative_to(docs)})")
    return "\n\n".join(parts)


OF_THE_RUNS = "What the verdict was made from"


def pack(claim: Claim, folder: Path, runs: Path, to: Path) -> Path | None:
    """Packs what a verdict is made from; None if the claim has no runs of its own."""
    asked = (str(of.get("measure")) for part in claim.parts for of in contrasts(part))
    tables = {f"{measure.partition('/')[0]}.arrow" for measure in asked}  # Of val there is none.
    names = ("sweep.yaml", "config.yaml", "summary.json", *tables)
    found = [path for name in names for path in folder.rglob(name)]
    if not found:
        return None
    to.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(to, "w:xz") as archive:
        for path in sorted(found):
            archive.add(path, path.relative_to(runs), filter=nobodys)
    return to


def nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without who packed it and when, so that the same runs give the same archive."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def head(claim: Claim) -> str:
    return f"## {claim.name}: {claim.says}"


def used(
    claim: Claim, claims: dict[str, Claim], preset: str
) -> Iterator[tuple[str, tuple[Claim, ClaimSweep]]]:
    """The sweeps that a claim looks at, and whose they are."""
    for label in claim.sweeps:
        owner, _, name = label.rpartition("/")
        of = claims[owner or claim.name]
        yield label, (of, of.presets[preset][name])


def verdict(said: dict[str, Any]) -> str:
    hours = sum(of["hours"] for of in said["sweeps"].values())
    incomplete = f"; incomplete: {said['absent']}" if said["absent"] else ""
    return f"**{said['verdict']}**, by preset {said['preset']} ({hours:.1f} h of runs{incomplete})."


def command(claim: Claim, preset: str, sweeps: dict[str, tuple[Claim, ClaimSweep]]) -> str:
    needs = [n for of, sweep in sweeps.values() for n in of.needs if f"${n}" in str(sweep.options)]
    files = "".join(f" --{name} FILE" for name in dict.fromkeys(needs))
    return f"python -m lit_gamma claim {claim.name} --preset {preset} --jobs 2{files}"


def code(line: str) -> str:
    return f"```\n{line}\n```"


def setting(label: str, of: dict[str, Any], sweep: ClaimSweep) -> str:
    grid = "; ".join(f"{key} {', '.join(values)}" for key, values in of["grid"].items())
    texts = {key: value for key, value in sweep.options.items() if isinstance(value, str)}
    plain = (f"{key} {value}" for key, value in texts.items() if "$" not in value)
    ended = f"{of['ended']} of {of['runs']} runs, {of['seeds']} seeds"
    return f"- {'; '.join((f'`{label}`: `configs/{sweep.config}`', *plain, grid, ended))}"


COLUMNS = "| part | | measured | value | 95 % interval | of |\n|---|---|---|---|---|---|"


def row(part: dict[str, Any]) -> str:
    value, low, high = (number(float(part[key])) for key in ("value", "low", "high"))
    interval = "–" if low == high == "–" else f"{low} .. {high}"
    what = part["what"].replace("/", ", ").replace("_", " ")
    cells = part["says"], f"**{part['verdict']}**", what, value, interval, part["note"]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


if __name__ == "__main__":
    main()
