"""Claims about speed and cost, each measured beside the usual way in the same run: `python -m benchmarks`.

A benchmark is a module here with one function `measure() -> list[Row]` whose defaults are the sizes to
report, and whose docstring says what is measured and why that is fair. Its name goes into `NAMES`. A module
in `COMMANDS` has a click command of its own name, with options, and is run only when it is named.
"""

NAMES = (
    "start",
    "training",
    "tracking_cost",
    "data_start",
    "batch",
    "search",
    "search_storage",
    "trial_cost",
    "serving",
    "service",
    "outputs",
    "soak",
)
COMMANDS = ("record", "gpu", "leaderboard", "latency", "release", "folds")
