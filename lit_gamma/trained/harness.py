"""A trained model and tasks, as lm-evaluation-harness wants them; needs lm_eval."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lit_gamma.data.hub import check_reachable
from lit_gamma.data.questions import Pair, encoded
from lit_gamma.errors import InputError
from lit_gamma.probing.continuations import TOKENS_AT_ONCE, continuation_scores
from lit_gamma.trained.checkpoint import Trained
from lit_gamma.trained.generation import Sampling, generate

TASKS = Path(__file__).with_name("tasks")
"""The folder of our own tasks."""


class HarnessModel(LM):  # type: ignore[misc]
    """A trained model that lm-eval asks.

    Nothing is put before a prompt; an empty one, and a text whose own likelihood is asked, begin
    with an end-of-text token.

    Args:
        trained: The model with its tokenizer.
        device: Where to run.

    Raises:
        InputError: The model has no tokenizer.
    """

    def __init__(self, trained: Trained, device: str | torch.device = "cpu") -> None:
        super().__init__()
        self.tokens = trained.text_tokenizer()
        self.model = trained.model.to(device)
        self.length = self.model.config.context_length
        self._device = torch.device(device)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The ln p of each continuation after its context, and whether greedy decoding gives it."""
        return self._scored([encoded(self.tokens, *request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The ln p of each whole text, in windows of the model's length."""
        asked: list[Pair] = []
        of: list[int] = []
        for i, request in enumerate(requests):
            tokens = self.tokens.encode([request.args[0]])[0].tolist()
            end = self.tokens.end_of_text
            windows = get_rolling_token_windows(tokens, end, self.length, context_len=1)
            asked += map(make_disjoint_window, windows)
            of += [i] * (len(asked) - len(of))
        totals = [0.0] * len(requests)
        for i, (likelihood, _) in zip(of, self._scored(asked), strict=True):
            totals[i] += likelihood
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What greedy decoding adds to each context, up to a stop, a document's end or the limit.

        Raises:
            InputError: A task wants samples.
        """
        alike: dict[tuple[int, int, tuple[str, ...]], list[tuple[int, list[int]]]]
        alike = defaultdict(list)
        for i, request in enumerate(requests):
            context, options = request.args
            wanted = normalize_gen_kwargs(options, 256)
            if wanted["do_sample"]:
                raise InputError(f"a task samples ({options}); only greedy decoding is supported")
            n_tokens = wanted["max_gen_toks"]
            stops = tuple(filter(None, handle_stop_sequences(wanted["until"], None)))
            room = self.length - n_tokens if n_tokens < self.length else self.length // 2
            tokens = self.tokens.encode([context])[0].tolist() if context else []
            kept = (tokens or [self.tokens.end_of_text])[-max(room, 1) :]
            alike[len(kept), n_tokens, stops].append((i, kept))
        texts = [""] * len(requests)
        for (length, n_tokens, stops), group in alike.items():
            at_once = max(1, TOKENS_AT_ONCE // (length + n_tokens))
            for start in range(0, len(group), at_once):
                places, contexts = zip(*group[start : start + at_once], strict=True)
                for i, text in zip(places, self._continue(contexts, n_tokens, stops), strict=True):
                    texts[i] = text
        return texts

    @torch.no_grad()
    def _scored(self, pairs: list[Pair]) -> list[tuple[float, bool]]:
        scores = continuation_scores(self.model, pairs, self.length, self._device)
        return list(zip(scores.log_likelihood.tolist(), scores.greedy.tolist(), strict=True))

    def _continue(
        self, contexts: Sequence[list[int]], n_tokens: int, stops: Sequence[str]
    ) -> list[str]:
        """Continues contexts of one length."""
        prompt = torch.tensor(contexts, device=self._device)
        greedy = Sampling(temperature=0)
        added: list[list[int]] = [[] for _ in contexts]
        running = set(range(len(contexts)))
        tail = 4 + max((len(stop.encode()) for stop in stops), default=0)  # A token has a byte.
        for step in generate(self.model, prompt, n_tokens, greedy, self.tokens.vocab_size):
            drawn = step.tolist()
            running -= {i for i in running if drawn[i] == self.tokens.end_of_text}
            for i in tuple(running):
                added[i].append(drawn[i])
                end = self.tokens.decode(added[i][-tail:])
                if any(stop in end for stop in stops):
                    running.remove(i)
            if not running:
                break
        texts = (self.tokens.decode(tokens) for tokens in added)
        return [postprocess_generated_text(text, list(stops), None) for text in texts]


def load_tasks(names: Sequence[str], data_files: str | None = None) -> dict[str, Any]:
    """Loads tasks and their data, for lm-eval's ``evaluate``.

    Args:
        names: Ours, those of lm-eval, or paths of YAML files.
        data_files: The local file that our own tasks read.

    Raises:
        InputError: There is no such task, or its data cannot be had.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    own = {path.stem for path in TASKS.glob("*.yaml")}
    known = own | {name for name in names if Path(name).is_file()}
    manager = TaskManager(
        include_path=TASKS,
        include_defaults=not known.issuperset(names),  # Reading all of them takes seconds.
        metadata={"data_files": data_files},
    )
    for name in names:
        _check_there(name, manager)
    try:
        loaded: dict[str, Any] = manager.load(list(names))
    except InputError:
        raise
    except Exception as error:  # What a task's own code raises; it names no class of its own.
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"--tasks {','.join(names)}: the data cannot be loaded ({type(error).__name__}: "
            f"{reason})"
        ) from error
    return loaded


def _check_there(name: str, manager: TaskManager) -> None:
    """Refuses a task that is not known, or whose data is on a hub that does not answer."""
    entry = manager.task_index.get(name) or TaskIndex.entry_from_path(Path(name))
    if entry is None:
        near = get_close_matches(name, manager.all_tasks, 3)
        ours = ", ".join(sorted(path.stem for path in TASKS.glob("*.yaml")))
        hint = f"did you mean {' or '.join(near)}?" if near else f"ours are {ours}"
        raise InputError(f"--tasks: {name!r} is no task of ours or of lm-eval; {hint}")
    config = entry.cfg or load_yaml(entry.yaml_path, resolve_func=False)
    local = (config.get("dataset_kwargs") or {}).get("data_files")
    if not local and "custom_dataset" not in config:
        check_reachable(f"the data of task {name}", "evaluate on a task with data of your own")
