"""How often the loops of a compiled program run."""

import json
import re

from omni_jax.compilation.hlo import Computation, Instruction, Module

_FREE = ("bitcast", "copy", "convert", "reshape")


def trip_count(module: Module, caller: Computation, loop: Instruction) -> int | None:
    """Iterations of a `while` whose counter runs from one constant to another; None where data decides.

    XLA states it for some back ends. Otherwise the condition must be one comparison of a counter with a constant, where
    the counter starts at a constant and the body adds a constant: this is what scans become.
    """
    stated = re.search(r'"known_trip_count":(\{[^}]*\})', loop.attributes)
    if stated:
        return int(json.loads(stated[1])["n"])
    condition = module.computations[loop.computations("condition")[0]]
    body = module.computations[loop.computations("body")[0]]
    compare = _through(condition, condition.root)
    if compare.opcode == "fusion":  # a comparison that XLA wrapped up
        inner = module.computations[compare.computations("calls")[0]]
        root = _through(inner, inner.root)
        outer = compare.operands
        sides = [_argument(inner, name, outer) for name in root.operands]
        compare = Instruction(root.name, root.opcode, root.type, tuple(map(str, sides)), root.attributes)
        constants = {str(side): _constant(inner.instructions.get(str(side))) for side in sides}
    else:
        constants = {}
    if compare.opcode != "compare":
        return None
    start = _starts(module, caller, loop)

    def value(name: str) -> tuple[int | None, int | None]:
        """(constant, place of the counter in the loop's state) of one side."""
        if constants.get(name) is not None:
            return constants[name], None
        found = _through(condition, condition.instructions[name])
        if found.opcode == "constant":
            return _constant(found), None
        if found.opcode != "get-tuple-element":
            return None, None
        place = found.number("index")
        step = _step(module, body, place)
        return (start(place), None) if step == 0 else (None, place)

    if len(compare.operands) != 2:
        return None
    (left, left_place), (right, right_place) = (value(name) for name in compare.operands)
    direction = re.search(r"direction=(\w+)", compare.attributes)[1]
    if left_place is None:  # constant on the left: turn it round
        left, left_place, right, right_place = right, right_place, left, left_place
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    if left_place is None or right is None:
        return None
    first, step = start(left_place), _step(module, body, left_place)
    if first is None or not step:
        return None
    if direction in ("LE", "GE"):
        right += 1 if direction == "LE" else -1
    if direction == "NE" and (right - first) % step:
        return None
    return max(0, -((first - right) // step)) if direction != "EQ" else None


def _through(computation: Computation, found: Instruction) -> Instruction:
    while found.opcode in _FREE and found.operands[0] in computation.instructions:
        found = computation.instructions[found.operands[0]]
    return found


def _constant(found: Instruction | None) -> int | None:
    number = re.match(r"\((-?\d+)\)", found.attributes) if found is not None and found.opcode == "constant" else None
    return int(number[1]) if number else None


def _argument(inner: Computation, name: str, outer: tuple[str, ...]) -> str:
    """The caller's name for a fusion's parameter; the inner one for anything else."""
    found = _through(inner, inner.instructions[name])
    return outer[int(found.operands[0])] if found.opcode == "parameter" else found.name


def _starts(module: Module, caller: Computation, loop: Instruction):
    """Value with which a place of the loop's state begins, where it is a constant."""

    def start(place: int) -> int | None:
        state = caller.instructions[loop.operands[0]]
        if state.opcode != "tuple":
            return None
        return _constant(_through(caller, caller.instructions[state.operands[place]]))

    return start


def _step(module: Module, body: Computation, place: int) -> int | None:
    """What the body adds to a place of its state: 0 for an invariant, None where it does something else."""
    root = body.root
    if root.opcode != "tuple":
        return None
    new = _through(body, body.instructions[root.operands[place]])
    if new.opcode == "get-tuple-element":
        return 0 if new.number("index") == place and _is_state(body, new) else None
    names = list(new.operands)
    if new.opcode == "fusion":
        inner = module.computations[new.computations("calls")[0]]
        add = _through(inner, inner.root)
        if add.opcode != "add":
            return None
        sides = [_argument(inner, name, tuple(names)) for name in add.operands]
        known = [_constant(inner.instructions.get(side)) for side in sides]
    elif new.opcode == "add":
        sides, known = names, [None, None]
    else:
        return None
    total, counters = 0, 0
    for side, constant in zip(sides, known):
        found = _through(body, body.instructions[side]) if constant is None else None
        if found is not None and found.opcode == "get-tuple-element" and found.number("index") == place:
            counters += 1
            continue
        constant = _constant(found) if constant is None else constant
        if constant is None:
            return None
        total += constant
    return total if counters == 1 else None


def _is_state(body: Computation, found: Instruction) -> bool:
    return body.instructions[found.operands[0]].opcode == "parameter"
