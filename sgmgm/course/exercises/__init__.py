"""Exercises: checks that say in words what is wrong with your function.

One check for each exercise in `notebooks/exercises/`. It calls the learner's function on a small
case whose answer is known, prints one line when all is well, and raises `NotYet` with one sentence
otherwise.
"""

# ruff: noqa: F401
from .adapters import (
    auxiliary_loss,
    corrupt,
    fair_control,
    lora,
    second_pass,
    select,
)
from .checks import NotYet
from .decoding import compounding, decode, inpaint, keep, tokens_kept
from .evaluation import (
    border,
    claim,
    coverage,
    extrapolate,
    frechet_1d,
    honest,
    last_layer_flops,
    median_time,
    passes,
    same_classes,
    speedup,
    to_unit,
    verdict,
)
from .guidance import (
    box_blur,
    classifier_free,
    equal_temperature,
    guide,
    guided_decode,
)
from .network import attention, block, cosine_mask, masked_loss, one_step_chance, train
from .tokens import (
    mask_tokens,
    nearest_code,
    perplexity,
    quantize,
    saving,
    sequence,
    straight_through,
)
