"""Searches that cannot work are refused in one line that names the key and the remedy."""

import importlib.util

import pytest
from sweep_of_rows import FINITE, MIXED, NUMERIC, TWO, proposer

from tuner.search.proposer import ProposalError
from tuner.spec.records import CategoricalParam, FloatParam, IntParam, SpaceFunction

LISTED = {"rate": [0.1], "depth": [1], "kind": ["a"]}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"sampler": "TPE"}, "search.sampler: unknown sampler 'TPE'; did you mean TPESampler?"),
        ({"sampler": "os"}, "search.sampler: unknown sampler 'os'; there are BruteForceSampler, CmaEsSampler"),
        ({"sampler": "BaseSampler"}, "search.sampler: unknown sampler 'BaseSampler'"),
        ({"sampler": "MedianPruner"}, "search.sampler: unknown sampler 'MedianPruner'"),
        ({"pruner": "Median"}, "search.pruner: unknown pruner 'Median'; did you mean MedianPruner"),
        ({"pruner": "__class__"}, "search.pruner: unknown pruner '__class__'"),
        ({"sed": 1}, "search.sampler: TPESampler has no argument 'sed'; did you mean seed?"),
        ({"sampler": "RandomSampler", "zzz": 1}, "search.sampler: RandomSampler has no argument 'zzz'; there are seed"),
        (
            {"pruner": "NopPruner", "pruner_arguments": {"x": 1}},
            "search.pruner: NopPruner has no argument 'x'; it takes none",
        ),
        ({"seed": "seven"}, "search.sampler.seed: must be int | None, not 'seven'"),
        ({"n_startup_trials": 1.5}, "search.sampler.n_startup_trials: must be int, not 1.5"),
        ({"n_startup_trials": True}, "search.sampler.n_startup_trials: must be int, not True"),
        ({"constant_liar": 1}, "search.sampler.constant_liar: must be bool, not 1"),
        ({"gamma": "x"}, "search.sampler.gamma: must be Callable[[int], int] | None, which a study file cannot hold"),
        (
            {"sampler": "QMCSampler", "qmc_type": "lattice"},
            "search.sampler: QMCSampler: The `qmc_type='lattice'` is invalid",
        ),
        ({"pruner": "PercentilePruner"}, "search.pruner: PercentilePruner: "),
        ({"pruner": "PercentilePruner", "pruner_arguments": {"percentile": 200}}, "search.pruner: PercentilePruner: "),
        ({"pruner": "MedianPruner", "pruner_arguments": {"n_warmup_steps": -1}}, "search.pruner: MedianPruner: "),
        (
            {"pruner": "HyperbandPruner", "pruner_arguments": {"max_resource": 0}},
            "search.pruner: HyperbandPruner: fails on a trial (ValueError: ",
        ),
        (
            {
                "sampler": "PartialFixedSampler",
                "fixed_params": {"wd": 0.5},
                "base_sampler": {"name": "RandomSampler"},
            },
            "search.sampler.fixed_params: there is no parameter 'wd'; ",
        ),
        (
            {"pruner": "SuccessiveHalvingPruner", "pruner_arguments": {"min_resource": "few"}},
            "search.pruner: SuccessiveHal",
        ),
        ({"pruner": "PatientPruner", "pruner_arguments": {"patience": 1}}, "search.pruner: PatientPruner: "),
        (
            {"pruner": "PatientPruner", "pruner_arguments": {"patience": 1, "wrapped_pruner": {"name": "Mean"}}},
            "search.pruner.wrapped_pruner: unknown pruner 'Mean'",
        ),
        (
            {"pruner": "PatientPruner", "pruner_arguments": {"patience": 1, "wrapped_pruner": 3}},
            "search.pruner.wrapped_pruner: write the pruner as {name: …, its arguments}",
        ),
        (
            {"pruner": "MedianPruner", "objectives": TWO},
            "search.pruner: MedianPruner cannot compare several objectives",
        ),
        (
            {"sampler": "CmaEsSampler", "objectives": TWO, "space": NUMERIC},
            "search.sampler: CmaEsSampler on this space failed",
        ),
        ({"sampler": "NSGAIISampler", "population_size": 1}, "search.sampler: NSGAIISampler: "),
        (
            {"sampler": "NSGAIISampler", "crossover": {"name": "SBX"}},
            "search.sampler.crossover: unknown crossover 'SBX'; did you mean",
        ),
        (
            {"sampler": "NSGAIIISampler", "reference_points": [[1]]},
            "search.sampler.reference_points: must be np.ndarray | None",
        ),
        ({"sampler": "GridSampler"}, "space.lr: GridSampler needs a finite set; give it a step"),
        (
            {"sampler": "GridSampler", "search_space": {}},
            "search.sampler.search_space: must list the parameters of space",
        ),
        (
            {"sampler": "GridSampler", "search_space": 3},
            "search.sampler.search_space: must map each parameter to a list",
        ),
        (
            {"sampler": "GridSampler", "space": FINITE, "search_space": {**LISTED, "rate": [0.9]}},
            "parameter rate: the value 0.9 is outside of FloatDistribution(high=0.4",
        ),
        (
            {"sampler": "GridSampler", "space": FINITE, "search_space": {**LISTED, "kind": ["c"]}},
            "parameter kind: the value 'c' is outside of",
        ),
        (
            {"sampler": "GridSampler", "space": FINITE, "search_space": {**LISTED, "rate": ["low"]}},
            "parameter rate: the value 'low' is outside of",
        ),
        (
            {"sampler": "GridSampler", "space": FINITE, "search_space": {**LISTED, "depth": [1, 1]}},
            "search.sampler.search_space.depth: values must be distinct",
        ),
        (
            {"sampler": "GridSampler", "space": (IntParam("n", 1, 10**9),)},
            "search.sampler.search_space: the grid has ",
        ),
        (
            {"sampler": "GridSampler", "space": (FloatParam("n", 0.0, 1.0, step=1e-9),)},
            "search.sampler.search_space: the grid has ",
        ),
        (
            {"sampler": "BruteForceSampler"},
            "search.sampler: BruteForceSampler on this space failed: ValueError: FloatDistribution.step",
        ),
        (
            {"sampler": "BruteForceSampler", "space": FINITE, "avoid_premature_stop": True},
            "search.sampler: BruteForceSampler needs no avoid_premature_stop here",
        ),
        (
            {"sampler": "PartialFixedSampler", "fixed_params": {}, "base_sampler": {"name": "GridSampler"}},
            "search.sampler: GridSampler cannot stand inside PartialFixedSampler",
        ),
        (
            {"sampler": "PartialFixedSampler", "fixed_params": {"lr": 7}, "base_sampler": "RandomSampler"},
            "parameter lr: the value 7.0 is outside of FloatDistribution(high=0.1",
        ),
        ({"space": (FloatParam("x", 2.0, 1.0),)}, "space.x: "),
        ({"space": (CategoricalParam("x", ()),)}, "space.x: "),
    ],
)
def test_a_bad_search_is_one_line(arguments, line):
    with pytest.raises(ProposalError) as refused:
        proposer(**{"sampler": "TPESampler", "space": MIXED, **arguments})
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("sampler", "pruner", "module", "remedy"),
    [
        ("GPSampler", None, "torch", "install the extra gp: pip install 'spot-tuner[gp]'"),
        ("CmaEsSampler", None, "cmaes", "install the extra cma: pip install 'spot-tuner[cma]'"),
        ("QMCSampler", None, "scipy", "pip install scipy"),
        ("TPESampler", "WilcoxonPruner", "scipy", "pip install scipy"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, sampler, pruner, module, remedy):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else found(name))
    with pytest.raises(ProposalError, match=f"needs {module}, which is not installed; ") as refused:
        proposer(sampler, pruner=pruner)
    assert str(refused.value).endswith(remedy)


@pytest.mark.parametrize(
    ("text", "function", "said"),
    [
        (None, "space", "cannot be imported: FileNotFoundError"),
        ("def space(trial:", "space", "cannot be imported: SyntaxError"),
        ("import no_such_module_here", "space", "cannot be imported: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "space", "cannot be imported: SystemExit: 3"),
        ("def spaces(trial): ...", "space", "has no function 'space'; it has spaces"),
        ("space = 3", "space", "has no function 'space'; it has none"),
        ("def space(trial): raise KeyError('lr')", "space", "failed: KeyError: 'lr'"),
        ("def space(): ...", "space", "failed: TypeError: space() takes 0 positional arguments"),
        ("def space(trial): ...", "space", "suggested no parameter"),
        ("def space(trial): trial.suggest_float('x', 2, 1)", "space", "failed: ValueError"),
        ("def space(trial): trial.suggest_categorical('x', [trial.number, 'a'])", "space", "failed: ValueError"),
    ],
)
def test_a_bad_space_function_is_one_line(tmp_path, text, function, said):
    file = tmp_path / "search_space.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ProposalError) as refused:
        proposer("TPESampler", SpaceFunction(str(file), function))
    assert str(file) in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_grid_over_a_function_must_be_listed(tmp_path):
    file = tmp_path / "search_space.py"
    file.write_text("def space(trial):\n    trial.suggest_int('n', 1, 9)\n")
    space = SpaceFunction(str(file), "space")
    with pytest.raises(ProposalError, match="GridSampler needs it"):
        proposer("GridSampler", space)
    grid = proposer("GridSampler", space, search_space={"n": [2, 4]})
    assert {grid.ask(0).params["n"], grid.ask(1).params["n"]} == {2, 4}
    assert grid.ask(2) is None
    with pytest.raises(ProposalError, match="parameter n: the value 77 is outside"):
        proposer("GridSampler", space, search_space={"n": [77]})


def test_a_space_function_that_fails_later_says_so_and_a_rebuild_heals(tmp_path):
    file = tmp_path / "search_space.py"
    file.write_text(
        "def space(trial):\n    trial.suggest_int('n', 1, 9)\n    assert trial.number != 2, 'two\\nlines'\n"
    )
    made = proposer("RandomSampler", SpaceFunction(str(file), "space"))
    made.ask(0)
    made.ask(1)
    with pytest.raises(ProposalError, match=r"failed: AssertionError: two lines$"):
        made.ask(2)
    made.rebuild((), {})
    assert made.ask(0).number == 0


def test_space_functions_of_the_same_file_name_do_not_mix(tmp_path):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "search_space.py"
        file.write_text(f"def space(trial):\n    trial.suggest_int('{name}', 1, 9)\n")
        made.append(proposer("RandomSampler", SpaceFunction(str(file), "space")))
    assert [list(p.ask(0).params) for p in made] == [["a"], ["b"]]
