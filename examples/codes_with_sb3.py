"""Codes for another library: DQN of stable-baselines3 on an environment with continuous actions.

    pip install stable-baselines3
    python examples/codes_with_sb3.py

A pendulum is recorded under a clumsy controller, `saqrl.fit` learns what 16 codes stand for, and
`QuantizedActions` makes the environment one with 16 discrete actions. Takes about a minute.
"""

import argparse
import tempfile
from pathlib import Path

import gymnasium
import numpy as np

import saqrl

ENVIRONMENT, CHUNK, CODES = "Pendulum-v1", 4, 16


def recordings(episodes: int) -> dict[str, np.ndarray]:
    """Of a controller that pumps energy and sometimes pushes at random: one row a step."""
    env, rows = gymnasium.make(ENVIRONMENT), []
    generator = np.random.default_rng(0)
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        push, ended = 0.0, False
        while not ended:
            if generator.random() < 0.1:
                push = generator.normal(0, 1.5)
            cosine, sine, velocity = observation
            upright = cosine > 0.8
            wanted = -10 * sine - 2 * velocity if upright else 2 * np.sign(velocity)
            action = np.clip([wanted + push], -2, 2).astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
            rows.append((observation, action, reward, ended))
            observation, push = following, 0.8 * push
    names = ("observations", "actions", "rewards", "episode_ends")
    return {
        name: np.asarray(column)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def returns(env: gymnasium.Env, choose, *, episodes: int) -> np.ndarray:
    """The sum of rewards of each episode."""
    totals = np.zeros(episodes)
    for episode in range(episodes):
        observation, _ = env.reset(seed=1000 + episode)
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(choose(observation))
            totals[episode] += reward
            ended = terminated or truncated
    return totals


def main(out: Path, *, decisions: int = 10_000) -> dict[str, float]:
    """Mean returns of 20 episodes: codes at random, and DQN after so many `decisions`."""
    from stable_baselines3 import DQN

    run = saqrl.fit(
        **recordings(100),
        out=out / "codes",
        recipe="plain",
        agent="bc",
        chunk=CHUNK,
        steps=1000,
        quantizer_steps=2000,
        quiet=True,
        **{"quantizer.codes": CODES, "prior.steps": 500},
    )
    env = saqrl.QuantizedActions(gymnasium.make(ENVIRONMENT), run.policy)
    env.action_space.seed(0)
    at_random = returns(env, lambda observation: env.action_space.sample(), episodes=20)
    agent = DQN(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        learning_starts=500,
        train_freq=1,
        target_update_interval=500,
        exploration_fraction=0.3,
        gamma=0.98,
        seed=0,
        device="cpu",
    )
    agent.learn(decisions)
    learned = returns(env, lambda seen: agent.predict(seen, deterministic=True)[0], episodes=20)
    return {"codes at random": float(at_random.mean()), "DQN on codes": float(learned.mean())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the run; default: a temporary one")
    for name, value in main(parser.parse_args().out or Path(tempfile.mkdtemp())).items():
        print(f"{name}: mean return {value:.0f}")
