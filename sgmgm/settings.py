"""Settings: the names of a pipeline's parts, and how images are sampled from them."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Self

from .guidance import GUIDANCES, SCALE_SCHEDULES, check_scale
from .masking import SCHEDULES
from .sampling import ORDERS, temperatures
from .smoothing import SMOOTHERS
from .utils.errors import InputError, check_choice, check_count, listed

CORE_PARTS = ("classifier", "tokenizer", "transformer")  # what unguided sampling needs
PARTS = (*CORE_PARTS, "weak", *(f"smoother-{k}".removesuffix("-toast") for k in SMOOTHERS))
TRAINABLE = (*PARTS, "second")  # the second extractor is no part of a pipeline: it only scores


@dataclass(frozen=True)
class Settings:
    """A dataclass whose fields are changed in copies."""

    def updated(self, **changes) -> Self:
        """A copy with some settings changed, None excepted; InputError on other names."""
        names, what = [f.name for f in fields(self)], type(self).__name__.lower()
        if unknown := listed(sorted(changes.keys() - set(names))):
            raise InputError(f"unknown {what} setting {unknown}: choose from {listed(names, 20)}.")
        return replace(self, **{k: v for k, v in changes.items() if v is not None})


@dataclass(frozen=True)
class Sampling(Settings):
    """How images are sampled: everything that `decode` and the guidance take."""

    steps: int = 12
    temperature: float = 6.0
    anneal: str = "linear"
    order: str = "confidence"
    schedule: str = "cosine"
    remask_known: bool = False  # the released sampler: known tokens have a finite confidence
    guidance: str = "none"
    scale: float = 1.0
    scale_schedule: str = "constant"
    smoother: str = "smoother"  # which of the pipeline's smoothers self-guidance uses

    def __post_init__(self):
        check_choice("order", self.order, ORDERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("guidance", self.guidance, GUIDANCES)
        check_choice("scale schedule", self.scale_schedule, SCALE_SCHEDULES)
        if GUIDANCES[self.guidance][1] == "smoother" and self.smoother in (*CORE_PARTS, "weak"):
            raise InputError(f"{self.smoother!r} is no smoother: name one of the pipeline's.")
        check_scale(self.scale)
        object.__setattr__(self, "steps", check_count("steps", self.steps))  # numpy's, for JSON
        temperatures(self.temperature, self.steps, self.anneal)

    @property
    def guidance_part(self) -> str | None:
        """The part that the guidance needs besides tokenizer and transformer: its name, or None."""
        needs = GUIDANCES[self.guidance][1]
        return self.smoother if needs == "smoother" else needs

    def record(self) -> dict:
        """The settings as records keep them: `remask_known`, which old ones lack, only if used."""
        return {k: v for k, v in asdict(self).items() if k != "remask_known" or v}
