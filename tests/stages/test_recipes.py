from functools import partial

import pytest

from transferseg.errors import TrainingError
from transferseg.stages import TrainingRecipe
from transferseg.training import adam, cosine, merand2021, zhou2022_sgd


def test_a_recipe_of_training_is_one_of_a_stage():
    given = TrainingRecipe.of(merand2021(), workers=8, channels_last=True)
    assert given.describe() == TrainingRecipe(
        epochs=100, batch_size=32, optimizer=partial(adam, lr=1e-3), schedule=cosine(),
        patience=5, channels_last=True,
    ).describe()  # fmt: skip
    assert given.workers == 8
    averaged = given.replace(ema_decay=0.9)
    assert averaged.describe() == {**given.describe(), "ema_decay": 0.9}
    assert averaged.options()["ema_decay"] == 0.9


def test_updates_are_not_epochs():
    with pytest.raises(TrainingError, match=r"zhou2022_sgd counts updates \(16000\)"):
        TrainingRecipe.of(zhou2022_sgd())
    recipe = TrainingRecipe.of(zhou2022_sgd(auxiliary_weight=0.3), epochs=160)
    assert (recipe.epochs, recipe.batch_size, recipe.auxiliary_weight) == (160, 8, 0.3)
