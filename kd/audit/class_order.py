"""Tells whether predictions count the classes in another order than the labels do."""

import math

import numpy as np


def better_order(counts, deviations=4.5):
    """Cycles of classes that raise mean recall beyond chance when they are renamed: [[i, j, ...]], i is called j.

    counts: [C, C] confusion matrix, a row a true class. deviations: how many standard deviations of recall a cycle
    has to gain; noise gains some 4 where it may choose among all renamings. In a network that knows anything, class
    j is called j more often than class i is, so that no cycle of renamings gains.
    """
    support = counts.sum(1)
    rates = counts / np.maximum(support, 1)[:, None]
    smoothed = (counts + 1) / (support + 2)[:, None]  # never 0 or 1, which few images cannot show
    # the variance of a rate, twice that of independent images: images of one lesion are alike
    variances = 2 * smoothed * (1 - smoothed) / np.maximum(support, 1)[:, None]
    best = assignment(-rates)
    cycles, visited = [], set()
    for start in range(len(counts)):
        cycle = []
        while start not in visited:
            visited.add(start)
            cycle.append(start)
            start = int(best[start])
        moved = [i for i in cycle if support[i] >= 10] if len(cycle) > 1 else []
        # the gain of a class of few images is unknown, and is taken for the least that it can be, -1
        gain = sum(rates[i, best[i]] - rates[i, i] for i in moved) - (len(cycle) - len(moved))
        noise = math.sqrt(sum(variances[i, best[i]] + variances[i, i] for i in moved))
        if moved and gain > max(deviations * noise, 0.15 * len(cycle)):
            cycles.append(cycle)
    return cycles


def assignment(cost):
    """[C] the column of each row that minimises the sum of cost [C, C] where each column is taken once.

    Hungarian method with potentials (Kuhn 1955), a row at a time along shortest augmenting paths: O(C^3).
    """
    size = len(cost)
    row_of = np.zeros(size + 1, int)  # of each column; rows and columns count from 1, 0 means none
    row_potential, column_potential = np.zeros(size + 1), np.zeros(size + 1)
    for row in range(1, size + 1):
        row_of[0], column = row, 0
        distance, previous = np.full(size + 1, np.inf), np.zeros(size + 1, int)
        used = np.zeros(size + 1, bool)
        while row_of[column]:
            used[column] = True
            free = np.flatnonzero(~used)
            reduced = cost[row_of[column] - 1, free - 1] - row_potential[row_of[column]] - column_potential[free]
            nearer = reduced < distance[free]
            distance[free[nearer]], previous[free[nearer]] = reduced[nearer], column
            nearest = free[distance[free].argmin()]
            step = distance[nearest]
            row_potential[row_of[used]] += step
            column_potential[used] -= step
            distance[free] -= step
            column = nearest
        while column:
            row_of[column], column = row_of[previous[column]], previous[column]
    columns = np.empty(size, int)
    columns[row_of[1:] - 1] = np.arange(size)
    return columns
