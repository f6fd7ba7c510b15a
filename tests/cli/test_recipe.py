"""Recipes: precedence, TOML round trip, ranges."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnpass.errors import UsageError
from cnpass.recipe import (
    CalibrateRecipe,
    EvaluateRecipe,
    InspectRecipe,
    OptimizeRecipe,
    Recipe,
    RetrainRecipe,
    SearchRecipe,
)


def test_flag_wins_over_file_wins_over_default(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("chips = 40\nseed = 3\n")
    recipe = EvaluateRecipe.build(file, {"chips": 50, "seed": None})
    assert (recipe.chips, recipe.seed, recipe.limit) == (50, 3, None)


@pytest.mark.parametrize("name", ["max-overhead", "max_overhead"])
def test_names_in_files(tmp_path: Path, name: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(f"{name} = 0.2\n")
    assert OptimizeRecipe.build(file).max_overhead == 0.2


@pytest.mark.parametrize(
    "recipe",
    [
        InspectRecipe(),
        EvaluateRecipe.build(None, {"sigma": "0.1,0.3", "param": ["nu=0.05", "t=1/4"], "scale": "1/255"}),
        OptimizeRecipe.build(None, {"budget": "5m", "retrain": False, "data": 'odd "name" \\ é.npz'}),
    ],
)
def test_toml_round_trip(tmp_path: Path, recipe: Recipe) -> None:
    file = tmp_path / "r.toml"
    file.write_text(recipe.to_toml(), encoding="utf-8")
    assert type(recipe).build(file) == recipe


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"chips": 1}, "option --chips: Input should be greater than or equal to 2"),
        ({"seed": -1}, "option --seed: "),
        ({"sigma": "0.1,x"}, "option --sigma: "),
        ({"sigma": "0.1,inf"}, "option --sigma: "),
        ({"scale": "1/0"}, "option --scale: "),
        ({"std": "0"}, "option --std: a standard deviation of 0 cannot divide"),
        ({"param": ["sigma"]}, "option --param: 'sigma' is not NAME=VALUE"),
        ({"layout": "chw"}, "option --layout: Input should be 'nchw' or 'nhwc'"),
        ({"until_ci": 0.0}, "option --until-ci: "),
    ],
)
def test_bad_flags(flags: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as error:
        EvaluateRecipe.build(None, flags)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chips = 1", "r.toml: chips: Input should be"),
        ("colour = 1", "r.toml: colour: 'evaluate' has no such option"),
        ("chips =", "r.toml: not a TOML recipe"),
        ("until-ci = 1\nuntil_ci = 2", "r.toml: until-ci is given twice"),
        ("sigma = true", "r.toml: sigma: true and false say nothing here"),
        ("chips = true", "r.toml: chips: true and false say nothing here"),
        ("sigma = [0.1, true]", "r.toml: sigma: give a number"),
        ("param = {sigma = true}", "r.toml: param: give a number"),
        ("chips = '\xff'", "r.toml: not a TOML recipe"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "r.toml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError) as error:
        EvaluateRecipe.build(file)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        EvaluateRecipe.build(tmp_path / "none.toml")


def test_identity_leaves_out_what_only_adds_work() -> None:
    short, long = (EvaluateRecipe.build(None, {"chips": n, "workers": n}) for n in (2, 3))
    assert short.identity() == long.identity()
    assert short.identity() != EvaluateRecipe.build(None, {"std": 2}).identity()


def test_names_are_checked_and_survive_toml(tmp_path: Path) -> None:
    recipe = OptimizeRecipe.build(None, {"augment": "flip, shift", "kinds": "paper"})
    assert (recipe.augment, recipe.kinds) == (("flip", "shift"), ("paper",))
    file = tmp_path / "r.toml"
    file.write_text(recipe.to_toml())
    assert OptimizeRecipe.build(file) == recipe
    for name, value in (("augment", "turn"), ("augment", "auto,flip"), ("kinds", "gain,gain"), ("kinds", "")):
        with pytest.raises(UsageError, match=f"option --{name}: give"):
            OptimizeRecipe.build(None, {name: value})


def test_a_saved_recipe_leaves_the_seed_to_a_mapped_model_unless_told() -> None:
    assert "seed" not in OptimizeRecipe.build(None, {"epochs": 3}).to_toml()
    assert "seed = 0\n" in OptimizeRecipe.build(None, {"seed": 0}).to_toml()


def test_the_recipe_of_a_training_survives_toml_and_is_checked(tmp_path: Path) -> None:
    flags = {"ramp": "0.5, 1.2", "clip_weights": 2.5, "censor": 1.0, "beta": 1e-4, "k": 2, "tune": 8}
    for kind in (RetrainRecipe, OptimizeRecipe):
        recipe = kind.build(None, flags)
        assert recipe.ramp == (0.5, 1.2)
        file = tmp_path / f"{kind.verb}.toml"
        file.write_text(recipe.to_toml())
        assert kind.build(file) == recipe
    for name, value in (("ramp", "-1"), ("ramp", ""), ("clip_weights", 1.0), ("censor", -0.1), ("tune", -1)):
        with pytest.raises(UsageError, match=f"option --{name.replace('_', '-')}: "):
            RetrainRecipe.build(None, {name: value})
    with pytest.raises(UsageError, match="option --retrain: --tune chooses"):
        OptimizeRecipe.build(None, {"retrain": False, "tune": 3})


@pytest.mark.parametrize(
    ("kind", "flags", "lines"),
    [
        (OptimizeRecipe, {}, []),
        (OptimizeRecipe, {"ramp": (1.0,), "k": 2, "kinds": "gain", "budget": "5m"}, []),
        (
            OptimizeRecipe,
            {"injection": False, "ramp": (1.0,)},
            ["--ramp does nothing beside --no-injection"],
        ),
        (
            OptimizeRecipe,
            {"retrain": False, "injection": False, "k": 2, "epochs": 3, "budget": "5m"},
            [
                "--k, --no-injection do nothing beside --no-retrain",
                "--budget does nothing beside --epochs",
            ],
        ),
        (
            OptimizeRecipe,
            {"compensation": False, "trials": 3, "beta": 0, "k": 2},
            ["--trials does nothing beside --no-compensation", "--k does nothing beside --beta 0"],
        ),
        (
            OptimizeRecipe,
            {"compensation": False, "retrain": False, "draws": 2},
            ["--draws does nothing beside --no-retrain and --no-compensation"],
        ),
        (RetrainRecipe, {"k": 2}, ["--k does nothing beside --beta 0"]),
        (RetrainRecipe, {"k": 2, "tune": 3}, []),
        (
            CalibrateRecipe,
            {"correction": "batch-norm", "max_overhead": 0.1},
            ["--max-overhead does nothing beside --correction batch-norm"],
        ),
        (CalibrateRecipe, {"correction": "affine", "max_overhead": 0.1}, []),
        (SearchRecipe, {"epochs": 3, "budget": "5m"}, ["--budget does nothing beside --epochs"]),
    ],
)
def test_options_that_do_nothing_are_named(kind, flags, lines) -> None:
    assert kind.build(None, flags).idle() == lines
