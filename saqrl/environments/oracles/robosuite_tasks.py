"""robosuite's tasks, demonstrated by experts of saqrl: TwoArmTransport."""

from typing import Any

import numpy as np
from jaxtyping import Float64

from saqrl.environments.make import make_environment
from saqrl.environments.oracles.demonstrator import Demonstrator, Draws, Recipe
from saqrl.environments.oracles.manners import REST_NOISE
from saqrl.environments.oracles.transport import FIRST, MANNERS, SECOND, Arm, Scene

TASKS = ("robosuite/TwoArmTransport",)


class TransportDemonstrator(Demonstrator):
    """Makes an episode of TwoArmTransport."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.manners = MANNERS[recipe.style]
        self.world = make_environment(recipe.environment_id)
        limit = self.world.spec.max_episode_steps if self.world.spec else None
        self.max_steps = recipe.max_steps or limit or 0

    def attempt(self, draws: Draws) -> dict[str, np.ndarray] | None:
        observation, info = self.world.reset(seed=draws.environment_seed)
        scene = Scene(self.world.get_wrapper_attr("_task"))
        arms = [Arm(number, scene, self.manners, draws.manners) for number in (FIRST, SECOND)]
        finished: set[str] = set()

        def act(*_: Any) -> np.ndarray:
            return np.concatenate([self._noisy(a.act(scene, finished), draws.noise) for a in arms])

        return self.solve(observation, info, act)

    def _noisy(
        self, action: Float64[np.ndarray, "7"], generator: np.random.Generator
    ) -> Float64[np.ndarray, "7"]:
        """With noise that grows with the command; a hand at rest has REST_NOISE of it."""
        share = max(REST_NOISE, float(np.linalg.norm(action[:3])))
        return action + generator.normal(0, self.recipe.noise * share, action.shape)
