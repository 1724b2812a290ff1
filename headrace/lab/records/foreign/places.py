"""What the place of a result (its directory, its file's name) says about it: repeat, warm-up, label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from headrace.lab.records.results import RunResult

_BLOCK = re.compile(r"#(\d+)$")
_SUFFIX = re.compile(r"(?<=.)\.[A-Za-z][A-Za-z0-9]{0,5}$")  # not the end of "qwen2.5-run1"
_INDEX = re.compile(
    r"(?:^|[-_. ])(?:runs?|reps?|repeat|repetition|trial|iter|iteration|attempt)[-_. =]?(\d+)(?=$|[-_. ])",
    re.IGNORECASE,
)
_WARM_UP = re.compile(r"^warm[-_ ]?ups?(?![a-z])|(?:^|[-_. ])warm[-_ ]?ups?(?:[-_. =]?\d+)?$", re.IGNORECASE)
_NO_WARM_UP = re.compile(r"(?:^|[-_. ])(?:no|non|without|with|after|post|skip)[-_. ]?warm", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """A run's source, taken apart.

    directories  as far as the source names them
    name, stem   of the file, with and without its suffix
    block        n of the n-th result in the file ("" where it is the only one)
    series       the stem without its run index, and `index` that index; None where the stem has none
    """

    directories: tuple[str, ...]
    name: str
    stem: str
    block: str
    series: str | None
    index: int | None


def place(source: str) -> Place:
    """Take a source apart: "a/bench_run2.log#3" is block 3 in run 2 of the series "bench" in the directory a."""
    block = _BLOCK.search(source)
    path = PurePath(source[: block.start()] if block else source)
    stem = _SUFFIX.sub("", path.name)
    index = _INDEX.search(stem)
    series = (stem[: index.start()] + stem[index.end() :]).strip("-_. ") if index else None
    number = int(index[1][:9]) if index else None
    return Place(path.parts[:-1], path.name, stem, block[1] if block else "", series, number)


def warm_up(run: RunResult) -> str | None:
    """Why the run is a warm-up and no measurement, or None."""
    stem = place(run.source).stem
    if _WARM_UP.search(stem) and not _NO_WARM_UP.search(stem):
        return "a warm-up (by its name), not a measurement"
    repeat = run.settings.get("repeat")
    return f"a warm-up (run number {repeat}), not a measurement" if isinstance(repeat, int) and repeat < 0 else None


def labels(sources: Sequence[str], *, together: Sequence[bool]) -> list[str]:
    """The shortest part of each source by which these can be told apart, the same kind of part for all.

    together  whether the source stands for several repeats: its label then leaves out the run index
    """
    places = [place(source) for source in sources]
    stems = [
        one.series or "" if one.index is not None and many else one.stem
        for one, many in zip(places, together, strict=True)
    ]
    blocks = [f"#{one.block}" if one.block else "" for one in places]
    deepest = max((len(one.directories) for one in places), default=0)
    paths = [(*one.directories, stem + block) for one, stem, block in zip(places, stems, blocks, strict=True)]
    choices = [
        blocks if len({(one.directories, one.name) for one in places}) == 1 else [""],
        stems,
        [one.name for one in places],
        [stem + block for stem, block in zip(stems, blocks, strict=True)],
        [one.name + block for one, block in zip(places, blocks, strict=True)],
        *([one.directories[-k] if len(one.directories) >= k else "" for one in places] for k in range(1, deepest + 1)),
        *(["/".join(path[-k:]) for path in paths] for k in range(2, deepest + 2)),
    ]
    return next((choice for choice in choices if all(choice) and len(set(choice)) == len(choice)), list(sources))
