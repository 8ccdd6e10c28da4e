"""Table 6, grounding: a box for an expression, right from IoU 0.5 on; a point, right inside the box.

    {"image": "1.jpg", "expression": "the left cat", "box": [10, 20, 110, 220], "width": 640, "height": 480}

"box" is (left, top, right, bottom) in pixels of the file, whose size is given. The model tells pixels of the picture
as it was resized for it, as the published one learnt. ODinW's mean average precision is not scored here.
"""

from omni_jax.evaluation import extract, metrics
from omni_jax.evaluation.prompts import ask
from omni_jax.evaluation.task import Measure, Task
from omni_jax.sampling.options import SamplingOptions

SETS = (
    "refcoco_val", "refcoco_testA", "refcoco_testB", "refcoco_plus_val", "refcoco_plus_testA", "refcoco_plus_testB",
    "refcocog_val", "refcocog_test",
)  # fmt: skip
OPTIONS = SamplingOptions(max_new_tokens=128)


def boxes(name: str) -> Task:
    return Task(
        name=name,
        file=f"{name}.jsonl",
        messages=ask("Locate {expression}, output its bbox coordinates using JSON format."),
        options=OPTIONS,
        measures=(Measure(name, metrics.box_accuracy(), extract=extract.box, reference=extract.box_of_reference),),
    )


TASKS = (
    *(boxes(name) for name in SETS),
    Task(
        name="pointing",
        file="pointing.jsonl",
        messages=ask(
            "Point to {expression}, output its coordinates in XML format <points x y>object</points> as (x, y)."
        ),
        options=OPTIONS,
        measures=(
            Measure("pointing", metrics.point_accuracy(), extract=extract.point, reference=extract.box_of_reference),
        ),
    ),
)
