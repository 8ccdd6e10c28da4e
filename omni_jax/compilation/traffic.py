"""Bytes that a compiled program moves: between the chip and its memory, between devices, and to the host.

Counted from the optimised HLO, instruction by instruction, each as often as its loop runs:

    a fusion           its operands and results once; of an operand that it only slices, the slices
    dynamic-update     the update, not the array around it: the compiler updates in place
    a kernel           what its cost estimate says (`pl.CostEstimate.bytes_accessed`), else operands and results
    a conditional      the branch that moves most
    arrays in VMEM     nothing: only the copies that bring them there

XLA's own `cost_analysis` counts the body of a loop once and knows nothing of kernels. The figure is a lower bound: an
instruction that reads an operand twice is counted as if it had read it once.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from omni_jax.compilation.hlo import HBM, HOST, Computation, Instruction, Module, Shape, arrays
from omni_jax.compilation.kernels import KERNELS
from omni_jax.compilation.trip_counts import trip_count

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "get-dimension-size", "domain",
}  # fmt: skip
_FREE_CALLS = {
    "AllocateBuffer",
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "AssumeGatherIndicesInBound",
}
_HOST_CALL = re.compile(r"host|callback|cpu", re.IGNORECASE)
_PLUMBING = ("bitcast", "reshape", "tuple", "get-tuple-element")

# The first of the fusions that an asynchronous collective is spread over.
_CHAIN_START = "async-collective-start"

# What a kernel moves, from arrays in and out, where its operands are not simply read once; None: no opinion.
KernelBytes = Callable[[list[Shape], list[Shape]], int | None]


@dataclass(frozen=True)
class Move:
    """One instruction's share: bytes of one execution, and how often it is executed."""

    instruction: str
    opcode: str
    source: str  # the JAX operation it came from
    bytes: int
    times: int

    @property
    def total(self) -> int:
        return self.bytes * self.times


@dataclass
class Traffic:
    """Of one device.

    hbm: bytes read from and written to its memory. collectives: bytes by kind; of an all-gather the result, of the
    others what a device puts in. wire: bytes that cross a device's links, if rings carry them. host: bytes
    to and from the host, and `host_transfers` how many instructions do that. guessed: loops whose length data decides,
    taken as often as the caller said. moves: the largest first.
    """

    hbm: int = 0
    host: int = 0
    wire: float = 0.0
    host_transfers: int = 0
    collectives: Counter = field(default_factory=Counter)
    guessed: list[str] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)

    def add(self, other: "Traffic", times: int = 1) -> None:
        self.hbm += other.hbm * times
        self.host += other.host * times
        self.wire += other.wire * times
        self.host_transfers += other.host_transfers
        for kind, size in other.collectives.items():
            self.collectives[kind] += size * times
        self.guessed += [name for name in other.guessed if name not in self.guessed]
        self.moves += [Move(m.instruction, m.opcode, m.source, m.bytes, m.times * times) for m in other.moves]


def traffic(
    module: Module, *, unknown_trips: int = 1, devices: int = 1, kernels: Mapping[str, KernelBytes] | None = None
) -> Traffic:
    """What one run of the program moves.

    Args:
        unknown_trips: iterations of loops whose length data decides.
        devices: of the whole program, for collectives that do not name their groups.
        kernels: by a part of a kernel's name, what it moves; before those of `kernels.py`, which always apply.
    """
    counter = _Counter(module, unknown_trips, devices, _kernels(kernels))
    total = counter.computation(module.main)
    total.moves.sort(key=lambda move: -move.total)
    return total


def loop_traffic(module: Module, *, devices: int = 1, kernels: Mapping[str, KernelBytes] | None = None) -> Traffic:
    """What one iteration of the program's only outermost loop of unknown length moves: a decoding step.

    Raises:
        ValueError: there is no such loop, or more than one.
    """
    loops = [
        each
        for each in module.main.instructions.values()
        if each.opcode == "while" and trip_count(module, module.main, each) is None
    ]
    if len(loops) != 1:
        raise ValueError(f"expected one loop of unknown length in the main program, found {len(loops)}")
    counter = _Counter(module, 1, devices, _kernels(kernels))
    total = Traffic()
    for part in ("body", "condition"):
        total.add(counter.computation(module.computations[loops[0].computations(part)[0]]))
    total.moves.sort(key=lambda move: -move.total)
    return total


def _kernels(given: Mapping[str, KernelBytes] | None) -> dict[str, KernelBytes]:
    return dict(given or {}) | {name: kernel.moved for name, kernel in KERNELS.items() if name not in (given or {})}


class _Counter:
    def __init__(self, module: Module, unknown: int, devices: int, kernels: Mapping[str, KernelBytes]):
        self.module, self.unknown, self.devices, self.kernels = module, unknown, devices, kernels
        self._known: dict[str, Traffic] = {}

    def computation(self, computation: Computation) -> Traffic:
        if computation.name not in self._known:
            total = Traffic()
            for each in computation.instructions.values():
                self._count(total, computation, each)
            self._known[computation.name] = total
        return self._known[computation.name]

    def _called(self, each: Instruction, key: str) -> Computation:
        return self.module.computations[each.computations(key)[0]]

    def _count(self, total: Traffic, inside: Computation, each: Instruction) -> None:
        opcode = each.opcode
        if opcode in _FREE or (opcode.endswith(("-done", "-update")) and opcode != "dynamic-update"):
            return
        if opcode == "while":
            trips = trip_count(self.module, inside, each)
            if trips is None:
                trips = self.unknown
                total.guessed.append(each.name)
            total.add(self.computation(self._called(each, "body")), trips)
            total.add(self.computation(self._called(each, "condition")), trips + 1)
        elif opcode == "conditional":
            names = each.computations("branch_computations")
            names = names or each.computations("true_computation") + each.computations("false_computation")
            branches = [self.computation(self.module.computations[name]) for name in names]
            total.add(max(branches, key=lambda branch: branch.hbm))
            # a transfer counts wherever it may happen
            total.host_transfers += sum(b.host_transfers for b in branches) - max(branches, key=_size).host_transfers
        elif opcode == "call":
            total.add(self.computation(self._called(each, "to_apply")))
        elif opcode == "async-start" and each.computations("calls"):
            total.add(self.computation(self._called(each, "calls")))
        else:
            self._leaf(total, inside, each)

    def _leaf(self, total: Traffic, inside: Computation, each: Instruction) -> None:
        operands = [inside.instructions[name].type for name in each.operands if name in inside.instructions]
        self._collective(total, each, operands)
        if _is_host_transfer(each):
            total.host_transfers += 1
        size = self._bytes(each, operands)
        total.hbm += size
        shapes = [shape for type_ in (*operands, each.type) for shape in arrays(type_)]
        total.host += sum(shape.bytes for shape in shapes if shape.space == HOST)
        if size:
            source = each.text("op_name") or ""
            total.moves.append(Move(each.name, each.opcode, source, size, 1))

    def _bytes(self, each: Instruction, operands: list) -> int:
        opcode = each.opcode.removesuffix("-start")
        result = each.type
        if each.opcode.endswith("-start") and isinstance(result, tuple) and len(result) > 1:
            # (what is read, what is written, flags …); a copy prints what is written first
            result = result[0] if opcode == "copy" else result[1]
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 0 if not operands or _hbm(operands[0]) == 0 else _hbm_or_shape(result) + _hbm(result)
        if opcode == "dynamic-update-slice":
            update = operands[1]
            return _hbm(update) + (_size_of(update) if _hbm(result) else 0)
        if opcode == "scatter":
            count = (len(operands) - 1) // 2
            updates = sum(_size_of(part) for part in operands[count + 1 :])
            return _hbm(operands[count]) + (3 * updates if _hbm(result) else updates)
        if opcode == "fusion":
            return self._fusion(each, operands)
        if opcode == "custom-call":
            return self._kernel(each, operands)
        if opcode in ("iota", "rng-get-and-update-state"):
            return _hbm(result)
        return sum(map(_hbm, operands)) + _hbm(result)

    def _kernel(self, each: Instruction, operands: list) -> int:
        target = each.text("custom_call_target") or ""
        if target in _FREE_CALLS:
            return 0
        names = f"{each.name} {each.text('op_name') or ''} {target}"
        estimate = re.search(r'\\?"cost_estimate\\?":\s*\{[^}]*?\\?"bytes_accessed\\?":\s*\\?"?(\d+)', each.attributes)
        if estimate and int(estimate[1]):
            return int(estimate[1])
        for part, count in self.kernels.items():
            if part in names:
                own = count([shape for type_ in operands for shape in arrays(type_)], list(arrays(each.type)))
                if own is not None:
                    return own
        return sum(map(_hbm, operands)) + _hbm(each.type)

    def _fusion(self, each: Instruction, operands: list) -> int:
        inner = self._called(each, "calls")
        if each.name.startswith(
            _CHAIN_START
        ):  # all that the collective reads and writes; its end and what goes on meanwhile add nothing
            gathered = each.type[1] if isinstance(each.type, tuple) else each.type
            return sum(map(_hbm, operands)) + _hbm(gathered)
        read = sum(
            min(_hbm(type_), self._read(inner, inner.parameters[place], _size_of(type_)))
            for place, type_ in enumerate(operands)
            if place in inner.parameters
        )
        results = each.type if isinstance(each.type, tuple) else (each.type,)
        roots = inner.root.operands if inner.root.opcode == "tuple" else (inner.root.name,)
        if len(roots) != len(results):
            return read + _hbm(each.type)
        return read + sum(
            min(_hbm(type_), self._written(inner, inner.instructions[name], _size_of(type_)))
            for type_, name in zip(results, roots)
        )

    def _read(self, inside: Computation, argument: Instruction, whole: int) -> int:
        """Bytes of a fusion's argument that it reads; at most the whole."""
        size, copied = self._uses(inside, argument, whole)
        return whole if copied else min(size, whole)

    def _uses(self, inside: Computation, found: Instruction, whole: int) -> tuple[int, bool]:
        """Bytes that are read of a value, and whether the value itself (not a slice of it) is the computation's result,
        whose users lie outside."""
        total, handed_on = 0, found.is_root
        for user in inside.users[found.name]:
            places = [place for place, name in enumerate(user.operands) if name == found.name]
            on = False
            if user.opcode in ("dynamic-slice", "slice", "gather") and places == [0]:
                total += _size_of(user.type)
            elif user.opcode == "dynamic-update-slice" and places == [0] and self._is_result(inside, user):
                continue  # in place
            elif user.opcode == "tuple" and user.is_root:
                continue  # handed through, in place
            elif _in_chain(user) or _is_chain_call(user):
                continue  # counted where the collective starts
            elif user.opcode in ("bitcast", "get-tuple-element"):
                on = True
            elif user.opcode in ("convert", "reshape", "copy"):
                # computed where it is needed: a slice of it needs a slice of this, in this one's own dtype
                size, through = self._uses(inside, user, whole)
                total += size * _size_of(found.type) // max(_size_of(user.type), 1)
                handed_on = handed_on or through
            elif user.opcode == "fusion":
                inner = self._called(user, "calls")
                for place in places:
                    size, through = self._uses(inner, inner.parameters[place], whole)
                    total, on = total + size, on or through
            else:
                return whole, False
            if on:
                size, through = self._uses(inside, user, whole)
                total, handed_on = total + size, handed_on or through
        return total, handed_on

    def _is_result(self, inside: Computation, found: Instruction) -> bool:
        """Whether an updated array leaves the fusion (in the buffer that it came in)."""
        if found.is_root:
            return True
        return any(user.opcode in _PLUMBING and self._is_result(inside, user) for user in inside.users[found.name])

    def _written(self, inside: Computation, root: Instruction, whole: int) -> int:
        while root.opcode in ("bitcast", "reshape") and root.operands[0] in inside.instructions:
            root = inside.instructions[root.operands[0]]
        if root.opcode == "dynamic-update-slice":
            return _size_of(inside.instructions[root.operands[1]].type)
        if root.opcode == "scatter":
            count = (len(root.operands) - 1) // 2
            return 2 * sum(_size_of(inside.instructions[name].type) for name in root.operands[count + 1 :])
        if root.opcode == "parameter" or _in_chain(root) or _is_chain_call(root):
            return 0  # handed through, in place
        if root.opcode == "fusion" and not isinstance(root.type, tuple):
            inner = self._called(root, "calls")
            return self._written(inner, inner.root, whole)
        return whole

    def _collective(self, total: Traffic, each: Instruction, operands: list) -> None:
        found = [(each, operands)]
        if each.opcode == "fusion":
            inner = self._called(each, "calls").instructions
            found = [(one, [inner[n].type for n in one.operands if n in inner]) for one in inner.values()]
        for one, types in found:
            kind = one.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or (_in_chain(one) and not each.name.startswith(_CHAIN_START)):
                continue
            group = _group(one, self.devices)
            size = sum(map(_size_of, types))
            if "all-reduce-scatter" in each.name or "all-reduce-scatter" in " ".join(each.computations("calls")):
                kind = "reduce-scatter"
            if kind == "all-gather":
                size *= group
            total.collectives[kind] += size
            total.wire += size * _ring(kind, group)


def _in_chain(each: Instruction) -> bool:
    """Whether a collective runs beside other work: it then stands in each of several fusions, but happens once."""
    return each.opcode in COLLECTIVES and "chain_id=" in each.attributes


def _is_chain_call(each: Instruction) -> bool:
    return each.opcode == "custom-call" and (each.text("custom_call_target") or "").startswith("AsyncCollective")


def _ring(kind: str, group: int) -> float:
    """Bytes over a device's links for each byte, on a ring."""
    if kind in ("collective-permute", "collective-broadcast"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (group - 1) / group


def _group(each: Instruction, devices: int) -> int:
    """Devices that take part in one group of a collective."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", each.attributes)
    if listed:
        return len(listed[1].split(","))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", each.attributes)
    if iota:
        return int(iota[1])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", each.attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        group = 1
        for name in re.findall(r"'([^']+)'", mesh[2]):
            group *= sizes.get(name, 1)
        return group
    return devices


def _is_host_transfer(each: Instruction) -> bool:
    if each.opcode in ("infeed", "outfeed"):
        return True
    if each.opcode in ("send", "recv"):
        return "is_host_transfer=true" in each.attributes
    if each.opcode == "custom-call":
        return bool(_HOST_CALL.search(each.text("custom_call_target") or ""))
    return each.opcode in ("copy", "copy-start") and any(shape.space == HOST for shape in arrays(each.type))


def _size(part: Traffic) -> int:
    return part.hbm


def _size_of(type_) -> int:
    return sum(shape.bytes for shape in arrays(type_))


def _hbm(type_) -> int:
    return sum(shape.bytes for shape in arrays(type_) if shape.space == HBM)


def _hbm_or_shape(type_) -> int:
    """Bytes of a slice, wherever it goes."""
    return sum(Shape(shape.dtype, shape.dims, shape.order, shape.tile).bytes for shape in arrays(type_))
