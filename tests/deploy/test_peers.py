"""Other people's libraries on what this one hands them, unmodified.

Beside the package, in an environment of its own (torch's CPU build first, else the others bring
CUDA's; d3rlpy and openpi-client declare older gymnasium and numpy than they need):

    pip install torch  # its build for processors alone is enough
    pip install stable-baselines3
    pip install --no-deps d3rlpy openpi-client
    pip install gym scikit-learn structlog colorama dataclasses-json click tqdm dm-tree msgpack
    pytest -m slow tests/deploy/test_peers.py
"""

import gymnasium
import numpy as np
import pytest

from saqrl.cli import main
from saqrl.policy.discrete_env import QuantizedActions
from tests.deploy.test_deployment_commands import CODES, dataset, runs  # noqa: F401
from tests.deploy.test_export import OBSERVATIONS, make_policy, write

# Peers warn of what they will; it is theirs.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Follow(gymnasium.Env):
    """Keep a point near 0: it moves by 0.3 times the second number of the action."""

    metadata: dict = {"render_modes": []}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float32)
    action_space = gymnasium.spaces.Box(
        np.array([0, -1], np.float32), np.array([10, 1], np.float32)
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.left = self.np_random.uniform(-1, 1), 20
        return self._observe(), {}

    def step(self, action):
        self.place += 0.3 * float(action[1])
        self.left -= 1
        return self._observe(), -(self.place**2), False, self.left == 0, {}

    def _observe(self):
        return np.array([self.place, abs(self.place), 1], np.float32)


def returns(env, choose, *, episodes: int) -> np.ndarray:
    """Of episodes with the seeds from 1000 on."""
    found = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=1000 + episode)
        total, ended = 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(choose(observation))
            total, ended = total + reward, terminated or truncated
        found.append(total)
    return np.array(found)


def test_stable_baselines_dqn_learns_on_codes():
    stable_baselines = pytest.importorskip("stable_baselines3", reason="no stable-baselines3")
    env = QuantizedActions(Follow(), make_policy("quantized", "bc"))
    env.action_space.seed(0)
    at_random = returns(env, lambda observation: env.action_space.sample(), episodes=100)
    agent = stable_baselines.DQN(
        "MlpPolicy", env, learning_rate=1e-3, learning_starts=200, train_freq=1,
        target_update_interval=200, exploration_fraction=0.5, gamma=0.95, seed=0, device="cpu",
    )  # fmt: skip
    agent.learn(5000)
    learned = returns(
        env, lambda observation: agent.predict(observation, deterministic=True)[0], episodes=100
    )
    print(f"random {at_random.mean():.2f}, learned {learned.mean():.2f}")
    error = np.sqrt((at_random.var() + learned.var()) / 100)
    # Five standard errors: one in three million by chance.
    assert learned.mean() - at_random.mean() > 5 * error


def test_d3rlpy_reads_coded_data_and_discrete_cql_trains_on_them(runs, dataset, tmp_path):  # noqa: F811
    d3rlpy = pytest.importorskip("d3rlpy", reason="no d3rlpy")
    path = tmp_path / "coded.npz"
    assert main(["convert", str(dataset), str(path), "--coded", str(runs / "cql")]) == 0
    with np.load(path) as archive:
        coded = dict(archive)
    data = d3rlpy.dataset.MDPDataset(**coded)
    assert data.dataset_info.action_space == d3rlpy.ActionSpace.DISCRETE
    ends = np.flatnonzero(coded["terminals"] + coded["timeouts"])
    assert [episode.size() for episode in data.episodes] == np.diff([-1, *ends]).tolist()
    assert [e.terminated for e in data.episodes] == coded["terminals"][ends].astype(bool).tolist()
    # Through the library's own file and back.
    with (tmp_path / "d3rlpy.h5").open("w+b") as file:
        data.dump(file)
    with (tmp_path / "d3rlpy.h5").open("rb") as file:
        again = d3rlpy.dataset.ReplayBuffer.load(file, d3rlpy.dataset.InfiniteBuffer())
    for name in ("observations", "actions", "rewards"):
        found = np.concatenate([getattr(episode, name) for episode in again.episodes])
        np.testing.assert_array_equal(found, coded[name])
    d3rlpy.seed(0)
    config = d3rlpy.algos.DiscreteCQLConfig(batch_size=32, learning_rate=1e-3)
    agent = config.create(device="cpu:0")
    epochs = agent.fit(
        data, n_steps=600, n_steps_per_epoch=200, show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )  # fmt: skip
    losses = [metrics["loss"] for _, metrics in epochs]
    print("losses", losses)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    chosen = agent.predict(coded["observations"])
    assert chosen.dtype.kind == "i"
    assert set(chosen) <= set(range(CODES))
    # Conservatism: far more often the data's code than one in CODES.
    assert (chosen == coded["actions"][:, 0]).mean() > 2 / CODES


def test_openpis_client_is_answered(tmp_path):
    client_module = pytest.importorskip(
        "openpi_client.websocket_client_policy", reason="no openpi-client"
    )
    pytest.importorskip("websockets")
    from tests.deploy.test_server import running

    path = tmp_path / "p.npz"
    policy = make_policy("quantized", "bc")
    write(policy, path)
    from saqrl.deploy import runtime

    expected = runtime.load(path).plan(OBSERVATIONS[:1])
    with running(path, token="secret") as (server, port):
        client = client_module.WebsocketClientPolicy("127.0.0.1", port, api_key="secret")
        assert client.get_server_metadata()["chunk"] == expected.actions.shape[1]
        for name in ("state", "observation/state"):
            answer = client.infer({name: OBSERVATIONS[0]})
            np.testing.assert_array_equal(answer["actions"], expected.actions[0])
        with pytest.raises(RuntimeError, match="number 1 of the observation is nan"):
            client.infer({"state": np.array([0, np.nan, 0], np.float32)})
        client.infer({"state": [0.0, 1.0, 2.0]})
        assert (server.answered, server.refused) == (3, 1)
