"""Adam or gradient descent, and does the method matter? Steps to the minimum of CAGrad's function of two parameters.

    mtljax analyze toy configs/toy.py --figure toy.png

prints, after 22 s of a processor (78 s on 2 CPU cores shared with other work), the steps from the slowest of three
starts (- is none in 100,000) for the learning rates 10, 5, 1, 0.5, 0.1, 0.05, 0.01, 0.005 and 0.001:

    gd    ew      -  111     -      -   6,369       -       -       -       -
    gd    pcgrad  -    -     -      -       -       -       -       -       -
    gd    cagrad  -   78   568    876   1,885   6,447  26,337  35,909       -
    adam  ew     26   37    22     58     709   3,808   5,598  24,934       -
    adam  pcgrad 25 4,792   56 17,714  33,212  39,434       -       -       -
    adam  cagrad 27   30    32    106     788   2,998   8,633  18,177  65,331

The first five of "adam ew" are those of the paper; slow cells are chaotic, and change with rounding. The other scale:
--scale=0.1. Other methods: --methods=all --iterations=10000.
"""

from mtljax.analysis.toy import LEARNING_RATES, ToyConfig


def get_config() -> ToyConfig:
    return ToyConfig(
        methods=("ew", "pcgrad", "cagrad"),
        options={"cagrad": {"c": 0.5, "rescale": "1+c"}},
        optimizers=("gd", "adam"),
        learning_rates=LEARNING_RATES,
        iterations=100_000,
        scale=1.0,
    )
