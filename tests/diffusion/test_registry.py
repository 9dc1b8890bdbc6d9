import functools

import pytest

from monai_diffae import diffusion
from monai_diffae.diffusion import SOLVERS, SolverFacts, register_solver, solver_facts
from monai_diffae.errors import ConfigError


@pytest.fixture
def solver():
    def double(denoise, schedule, x, levels, *, clip_range=None, callback=None):
        return 2 * x

    yield double
    SOLVERS.pop("double", None)


def test_a_registered_solver_is_found_by_its_name_and_carries_its_facts(solver):
    facts = SolverFacts(order=2, evaluations_per_step=3)
    assert register_solver("double", facts)(solver) is solver
    assert SOLVERS["double"] is solver
    assert solver_facts(solver) == facts
    with pytest.raises(ConfigError, match="there is already a solver called 'double'; choose another name"):
        register_solver("double", facts)(solver)


def test_a_partial_has_the_facts_of_its_function_and_other_functions_the_defaults(solver):
    register_solver("double", SolverFacts(evaluations_per_step=3))(solver)
    assert solver_facts(functools.partial(solver, clip_range=None)).evaluations_per_step == 3
    assert solver_facts(lambda *_: None) == SolverFacts()


@pytest.mark.parametrize("per_step", [1, 2, 3])
def test_steps_are_the_most_that_the_evaluations_allow(per_step):
    facts = SolverFacts(evaluations_per_step=per_step)
    for evaluations in range(1, 20):
        steps = facts.steps(evaluations)
        assert facts.evaluations(steps) <= evaluations < facts.evaluations(steps + 1)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_package_offers_each_solver_under_its_name(name):
    assert getattr(diffusion, name) is SOLVERS[name]
    assert name in diffusion.__all__
    assert SOLVERS[name].__doc__
