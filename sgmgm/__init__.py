"""sgmgm: masked generative image models with self-guidance, small enough to read.

The modules follow the data: datasets -> tokenizer -> masking -> transformer -> smoothing ->
guidance -> sampling -> metrics, with training and pipeline around them.
"""

__version__ = "0.1.0"
