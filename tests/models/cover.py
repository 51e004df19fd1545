"""Few cases that hold every pair of values of several axes."""

from itertools import combinations, product


def pairs(case):
    """The pairs of (axis, value) of a case, which has one value an axis."""
    return set(combinations(enumerate(case), 2))


def pairwise(*axes):
    """Cases, one value an axis each, such that every two values of two axes meet in one of them.

    Greedy: a case begins with the first pair that is missing, and takes on every other axis the
    value that adds most missing pairs, of equals the least used.
    """
    missing = dict.fromkeys(
        ((i, a), (j, b))
        for i, j in combinations(range(len(axes)), 2)
        for a, b in product(axes[i], axes[j])
    )
    used = {(i, value): 0 for i, axis in enumerate(axes) for value in axis}
    cases = []
    while missing:
        chosen = dict(next(iter(missing)))
        for i, axis in enumerate(axes):
            if i not in chosen:
                chosen[i] = max(
                    axis, key=lambda v, i=i: (_gain(chosen, i, v, missing), -used[i, v])
                )
        case = tuple(chosen[i] for i in range(len(axes)))
        cases.append(case)
        for i, value in enumerate(case):
            used[i, value] += 1
        for pair in pairs(case):
            missing.pop(pair, None)
    return cases


def _gain(chosen, axis, value, missing):
    meetings = (tuple(sorted([(axis, value), other])) for other in chosen.items())
    return sum(pair in missing for pair in meetings)
