"""What loggers other than TensorBoard's get: the lines that tell most, and pictures."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Sequence

from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from PIL import Image

from lit_gamma.trajectory.lines import Shown
from lit_gamma.trajectory.table import Table

MOST_TAGS = 40
"""Lines that such a logger gets: services slow down, or charge, with their number."""


class OtherLoggers:
    """Lightning's loggers but TensorBoard's, which must not end training.

    They get the first :data:`MOST_TAGS` of TensorBoard's tags, by ``log_metrics``. The places in
    the tags put the loss first, then the task, condensation, ranks, norms; what else is recorded
    follows while there is room. Nothing is repeated after a resume. W&B and MLflow get pictures.

    Args:
        loggers: The loggers.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = loggers
        self._tags: set[str] = set()
        self._all_tags = False
        self._failed: set[Logger] = set()

    @property
    def take_pictures(self) -> bool:
        """Whether any of them does."""
        return any(isinstance(logger, WandbLogger | MLFlowLogger) for logger in self._loggers)

    def choose(self, tables: Iterable[Table]) -> None:
        """Chooses the tags among those of all tables; all of them where TensorBoard gets all."""
        tags = set()
        for table in tables:
            self._all_tags |= table.all_tags
            columns = [column for shown in table.charts.values() for column in shown]
            tags |= {tag for column in columns for tag in table.tags(column)}
        self._tags = set(sorted(tags)[:MOST_TAGS])

    def log(self, shown: Shown) -> None:
        """Logs the chosen lines of a step."""
        values = {tag: value for tag, value in shown.values.items() if self._chosen(tag)}
        if values and not shown.again:
            self._tell(lambda logger: logger.log_metrics(values, shown.step))

    def picture(self, tag: str, png: bytes, step: int) -> None:
        """Logs a picture where there is a place for it."""

        def tell(logger: Logger) -> None:
            if isinstance(logger, WandbLogger):
                logger.log_image(tag, [image], step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_image(logger.run_id, image, key=tag, step=step)

        image = Image.open(io.BytesIO(png)).convert("RGB")
        self._tell(tell)

    def _chosen(self, tag: str) -> bool:
        if len(self._tags) < MOST_TAGS:
            self._tags.add(tag)
        return self._all_tags or tag in self._tags

    def _tell(self, tell: Callable[[Logger], None]) -> None:
        for logger in self._loggers:
            try:
                tell(logger)
            except Exception as error:
                if logger not in self._failed:
                    warnings.warn(
                        f"{type(logger).__name__} does not take what is recorded "
                        f"({type(error).__name__}: {error}); training goes on, the files have it",
                        stacklevel=2,
                    )
                self._failed.add(logger)
