"""Whether predictions count the classes in another order than labels do."""

import math

import numpy as np


def better_order(counts, deviations=4.5):
    """Cycles of classes that, renamed, raise recall more than chance does: [[i, j, ...]], i being called j.

    Mean recall is maximised over all renamings. In a network that knows anything, class j is called j
    more often than class i is, so that no cycle of renamings gains; noise gains some 4 standard
    deviations where it may choose among all renamings.
    """
    support = counts.sum(1)
    rates = counts / np.maximum(support, 1)[:, None]
    spread = (counts + 1) / (support + 2)[:, None]  # never 0 or 1, of which few images could not tell
    spread = 2 * spread * (1 - spread) / np.maximum(support, 1)[:, None]  # twice: images of a lesion are alike
    best = assignment(-rates)
    found, seen = [], set()
    for start in range(len(counts)):
        cycle = []
        while start not in seen:
            seen.add(start)
            cycle.append(start)
            start = int(best[start])
        moved = [i for i in cycle if support[i] >= 10] if len(cycle) > 1 else []
        # a class of few images says nothing, and may have lost as much as a class can
        gain = sum(rates[i, best[i]] - rates[i, i] for i in moved) - (len(cycle) - len(moved))
        noise = math.sqrt(sum(spread[i, best[i]] + spread[i, i] for i in moved))
        if moved and gain > max(deviations * noise, 0.15 * len(cycle)):
            found.append(cycle)
    return found


def assignment(cost):
    """[C] the column of each row that makes the sum of cost [C, C] least, each column once.

    Kuhn's Hungarian method with potentials, a row at a time along shortest augmenting paths: O(C^3).
    """
    size = len(cost)
    row_of, above, left = np.zeros(size + 1, int), np.zeros(size + 1), np.zeros(size + 1)  # columns count from 1
    for row in range(1, size + 1):
        row_of[0], column = row, 0
        least, before = np.full(size + 1, np.inf), np.zeros(size + 1, int)
        used = np.zeros(size + 1, bool)
        while row_of[column]:
            used[column] = True
            free = np.flatnonzero(~used)
            reduced = cost[row_of[column] - 1, free - 1] - left[row_of[column]] - above[free]
            better = reduced < least[free]
            least[free[better]], before[free[better]] = reduced[better], column
            nearest = free[least[free].argmin()]
            step = least[nearest]
            left[row_of[used]] += step
            above[used] -= step
            least[free] -= step
            column = nearest
        while column:
            row_of[column], column = row_of[before[column]], before[column]
    columns = np.empty(size, int)
    columns[row_of[1:] - 1] = np.arange(size)
    return columns
