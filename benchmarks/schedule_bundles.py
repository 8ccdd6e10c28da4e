"""Cycles of a compiled TPU program, from the compiler's own schedule. No TPU is needed, and none was measured.

The method:
 * a kernel (`tpu_custom_call`): the schedule is a list of VLIW bundles, one a cycle when nothing stalls. The text of it
   (`*final_bundles.txt`) shows loops with their trip counts and regions that a branch may skip. One trip of the outer
   loop is a step of the grid; its bundles, times the steps, are the cycles of the units. Regions that a kernel runs
   only in some steps (begin and end of a row of blocks, masked or unmasked form) count by the share of those steps.
   The memory's share is the bytes that the steps load and store, over the bandwidth. The larger of the two counts,
   since both go on at once. Stalls and the hidden cost of a grid step (some hundred cycles) are left out, on all sides.
 * everything else that XLA does: the `estimated_cycles` that the compiler writes beside each fusion, which include
   memory, times the trips of loops around it. Copies to another layout have none: their schedule counts, as above.
   (Checked on the gathered form of 30 s of audio: the product of queries and keys is 14,768 by estimate and 12,168 by
   schedule. A sum is 8,848 and 26,726: the estimate, which counts here, favours XLA.)

`tests/kernels/test_interval_schedule.py` holds the parser to hand-made texts; `tpu_schedule.py` reports every pattern
in two lengths, and cycles must grow with them.
"""

import dataclasses
import glob
import os
import re

# A skipped region shorter than this is the pipeline's own (starting a copy): it counts in every step.
LARGE = 100
# The compiler writes the largest integer where it has no estimate.
_NO_ESTIMATE = 1 << 60

_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+([A-Z]*)\s*:((?:\s*>)*)")
_BRANCH = re.compile(r"sbr\.rel \((!?)%\w+\) target = \$region(\d+)")
_EXIT = re.compile(r"scmp\.\w+\.s32\.totalorder %\w+, (\d+) /\* loop exit test")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One trip of the grid loop of a kernel.

    Attributes:
        always: bundles of every step, inner loops included.
        regions: bundles of each region that a step may skip, in order, inner loops included.
        trips: of the grid loop, where the schedule tells them.
    """

    name: str
    always: int
    regions: tuple[int, ...]
    trips: int | None = None

    def cycles(self, steps: float, shares: tuple[float, ...] = ()) -> float:
        """Cycles of `steps` steps; shares: of the steps in which each region runs (all of them if not given)."""
        shares = shares or (1.0,) * len(self.regions)
        if len(shares) != len(self.regions):
            raise ValueError(f"{self.name}: {len(self.regions)} regions {self.regions}, but {len(shares)} shares")
        return steps * (self.always + sum(size * share for size, share in zip(self.regions, shares)))


def parse_kernel(name: str, text: str) -> Kernel:
    """Reads a `*final_bundles.txt`: the outermost loop is the grid."""
    loops, branches, ends, exits, last = [], [], [], [], 0
    for line in text.splitlines():
        found = _BUNDLE.match(line)
        if not found:
            continue
        at, tag, depth = int(found[1], 16), found[2], found[3].count(">")
        last = at
        if tag == "LB":
            loops.append((at, depth))
        if tag in ("PF", "LE"):
            ends.append((at, depth))
        if test := _EXIT.search(line):
            exits.append((at, int(test[1])))
        if branch := _BRANCH.search(line):
            branches.append((at, depth, branch[1] == "!"))
    if not loops:
        return Kernel(name, last + 1, (), 1)
    outer = min(depth for _, depth in loops)
    begin = next(at for at, depth in loops if depth == outer)
    # the grid loop ends with a branch back, after everything that lies deeper
    finish = max([at for at, _, _ in branches] + [begin])
    inner = []
    for at, depth in loops:
        if depth != outer + 1:
            continue
        back = min(b for b, _, negated in branches if b > at and negated)
        trips = next((count for where, count in exits if at <= where <= back), 1)
        inner.append((at, back, trips))

    def extra(low, high):
        """Bundles that inner loops add by running more than once."""
        return sum((back - at + 1) * (trips - 1) for at, back, trips in inner if low <= at < high)

    regions, covered = [], 0
    for at, depth, negated in branches:
        if depth != outer or negated or at < begin or at >= finish:
            continue
        end = min((where for where, deep in ends if where > at and deep == outer), default=finish)
        if end - at < LARGE or any(low <= at < high for low, high in regions):
            continue
        regions.append((at, end))
        covered += end - at
    sizes = tuple(end - at + extra(at, end) for at, end in regions)
    outside = extra(begin, finish) - sum(extra(at, end) for at, end in regions)
    inside = [(low, high) for low, high, _ in inner]
    outer_exits = [n for at, n in exits if at >= begin and not any(low <= at <= high for low, high in inside)]
    trips = outer_exits[0] if len(outer_exits) == 1 else None
    return Kernel(name, finish - begin + 1 - covered + outside, sizes, trips)


def kernels_of(folder: str) -> dict[str, Kernel]:
    """Every kernel in a dump folder, by the name of its custom call."""
    found = {}
    for path in glob.glob(os.path.join(folder, "*-final_bundles.txt")):
        name = re.match(r"\d+-(.+)-\d+-final_bundles\.txt$", os.path.basename(path))
        if name:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
            found[name[1]] = parse_kernel(name[1], text)
    return found


def _by_schedule(line: str, kernels: dict[str, Kernel]) -> float:
    name = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) =", line)
    kernel = kernels.get(name[1]) if name else None
    if kernel is None or kernel.trips is None:
        return 0.0
    # two trips of a pipelined loop fill and empty the pipeline
    busy = max(kernel.trips - 2, 1)
    return kernel.cycles(kernel.trips, (busy / kernel.trips,) * len(kernel.regions))


def xla_cycles(hlo: str, kernels: dict[str, Kernel] | None = None) -> float:
    """Cycles of what XLA does itself, over a program's text; loops count with their trips, our and JAX's kernels not.

    The compiler's estimate where it writes one; else (copies to another layout) the schedule in `kernels`, by name.
    """
    kernels = kernels or {}
    computations, name = {}, None
    for line in hlo.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[2]
            computations[name] = []
            if head[1]:
                entry = name
        elif name and " = " in line:
            computations[name].append(line)

    def trips_of(line, condition):
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
            return int(known[1])
        limits = [found[1] for each in computations[condition] if (found := re.search(r" constant\((\d+)\)", each))]
        if len(limits) != 1:
            raise ValueError(f"cannot tell how often the loop runs whose condition is {condition}")
        return int(limits[0])

    def cost(name):
        total = 0.0
        for line in computations.get(name, []):
            if loop := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                total += cost(loop[2]) * trips_of(line, loop[1])
            elif branches := re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", line):
                total += max(cost(each.strip().lstrip("%")) for each in branches[1].split(","))
            elif " custom-call(" not in line:
                estimate = re.search(r'estimated_cycles":"(\d+)"', line)
                known = estimate and int(estimate[1]) < _NO_ESTIMATE
                total += int(estimate[1]) if known else _by_schedule(line, kernels)
        return total

    return cost(entry)
