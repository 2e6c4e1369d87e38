"""Image classification: the images of all waiting jobs in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from capanode.engines.base import (
    Completed,
    EngineEvent,
    EngineInfo,
    EngineInput,
    EngineRefusal,
    ModelLoadError,
    Produced,
    Started,
)
from capanode.engines.efficientnet import EfficientNetConfig, EfficientNetLite
from capanode.engines.picture import PIXELS_MAX, Preparation, prepare
from capanode.engines.profile import EFFICIENTNET, Profile, device_class
from capanode.engines.weights import Weights, read_json, read_names
from protocol.codec import encode
from protocol.errors import Code
from protocol.limits import NAME_CHARS_MAX
from protocol.messages import Task
from protocol.payload import ClassificationOutput, ImageInput, Label
from protocol.pricing import Units

_UNITS = Units(images=1)


@dataclass(frozen=True, slots=True)
class _Job:
    job_id: str
    pixels: npt.NDArray[np.float32]
    top_k: int


class ImageClassifier:
    """An Engine for classification."""

    def __init__(
        self,
        model: EfficientNetLite,
        labels: Sequence[str],
        preparation: Preparation,
        *,
        slots: int,
        device: torch.device,
    ) -> None:
        self._model, self._labels, self._preparation = model, labels, preparation
        self._device = device
        self._waiting: dict[str, _Job] = {}
        self._info = EngineInfo(
            task=Task.IMAGE_CLASSIFICATION,
            slots=slots,
            context_tokens=0,
            quantization="fp32",
            profile=str(
                Profile(
                    engine=EFFICIENTNET, weights="fp32", compute="fp32", device=device_class(device)
                )
            ),
        )

    @classmethod
    def load(
        cls, model_dir: Path, *, slots: int, threads: int, device: str | torch.device = "cpu"
    ) -> "ImageClassifier":
        """Raises ModelLoadError if the directory does not hold a model that runs here."""
        torch.set_num_threads(threads)
        # A second net under our own check: Pillow warns above this and refuses above twice of it.
        Image.MAX_IMAGE_PIXELS = PIXELS_MAX
        device = torch.device(device)
        config = EfficientNetConfig.parse(read_json(model_dir / "config.json"))
        labels = read_names(model_dir / "labels.json")
        if len(labels) != config.classes:
            raise ModelLoadError(f"{len(labels)} labels do not name {config.classes} classes")
        if any(len(label) > NAME_CHARS_MAX for label in labels):
            raise ModelLoadError(f"a label has more than {NAME_CHARS_MAX} characters")
        preparation = Preparation(
            size=config.image_size,
            crop_fraction=config.crop_fraction,
            mean=config.image_mean,
            std=config.image_std,
            resample=config.resample,
        )
        with torch.inference_mode():
            model = EfficientNetLite(config, Weights(model_dir), device=device)
        return cls(model, labels, preparation, slots=slots, device=device)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    def slow_reading(self, job_input: EngineInput) -> None:
        """See `Engine.slow_reading`: all inputs are read by `submit`."""

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        """Raises EngineRefusal: INVALID_IMAGE, IMAGE_TOO_LARGE or INVALID_INPUT."""
        if not isinstance(job_input, ImageInput):
            raise EngineRefusal("this model classifies images", code=Code.INVALID_INPUT)
        assert job_id not in self._waiting, "the parent names each job once"
        pixels = prepare(job_input.image, self._preparation)
        self._waiting[job_id] = _Job(job_id, pixels, job_input.top_k)

    def cancel(self, job_id: str) -> None:
        self._waiting.pop(job_id, None)

    def step(self) -> Sequence[EngineEvent]:
        jobs = list(islice(self._waiting.values(), self._info.slots))
        if not jobs:
            return []
        with torch.inference_mode():
            images = torch.from_numpy(np.stack([job.pixels for job in jobs])).to(self._device)
            scores, places = self._model.classify(images).softmax(-1).sort(-1, descending=True)
        events: list[EngineEvent] = []
        for job, row_scores, row_places in zip(jobs, scores, places, strict=True):
            del self._waiting[job.job_id]
            count = min(job.top_k, len(self._labels))
            labels = tuple(
                Label(self._labels[place], score)
                for place, score in zip(
                    row_places[:count].tolist(), row_scores[:count].tolist(), strict=True
                )
            )
            events += (
                Started(job.job_id, _UNITS),
                Produced(job.job_id, (), "", encode(ClassificationOutput(labels))),
                Completed(job.job_id, "complete", _UNITS),
            )
        return events
