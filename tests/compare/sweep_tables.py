"""Small theory sweeps, really run, for the tests of figures and claims."""

import compare
from compare import sweeps
from ufm import sweep


def run(root, system, seeds, options, zipped=()):
    """Compute one sweep below `root` and return its folder."""
    cell = {"system": system, "options": options, "zip": zipped}
    values, grid = sweeps.grid_of(cell)
    plan = sweep.plan(sweeps.system_of(cell), values, grid, tuple(seeds))
    return sweep.execute(plan, root=root, environment={}).path


def flows(root):
    """Return the table of flows on and off the subspace of Mixon, Parshall and Pi."""
    for init, scale in (("subspace", 0.1), ("random", 0.1), ("random", 0.03)):
        options = {"classes": 3, "dim": 5, "per_class": 4, "init": init, "init_scale": scale, "t_end": 60.0, "points": 21}
        run(root, "flow", range(3), {**options, "trajectory": True})
    return compare.load(root)


def ends(root):
    """Return the table of end points of short deep runs, over the initial scale at three depths."""
    options = {"classes": 3, "dim": 4, "depth": "2:5", "init_scale": "0.7,1,1.4", "steps": 700}
    run(root, "deep", range(4), options)
    return compare.load(root)


def plane(root):
    """Return the table of end points over width and weight decay."""
    options = {"classes": 3, "dim": "3:6", "depth": 3, "lambda_w": "1e-3:1e-1:5log", "steps": 700}
    run(root, "deep", range(3), options)
    return compare.load(root)


def starvations(root):
    """Return the table of features of two strengths under both penalties, mixed by two seeds."""
    options = {"samples": 3, "mixing": "random", "s1": "2.5,4,8,12", "penalty": ["ridge", "decoupling"]}
    run(root, "starvation", range(2), options)
    return compare.load(root)
