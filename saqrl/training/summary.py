"""The end of a run in words."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from saqrl.training.online.address import ROBOT

# Points of success below which 20 to 50 episodes tell no difference.
LEVEL = 20


def score_words(record: Mapping[str, Any]) -> str:
    """The scores of a record that are there, the task's own measure first."""
    words = []
    if record.get("success_rate") is not None:
        words.append(f"success {100 * record['success_rate']:.0f} %")
    if record.get("normalized_score") is not None:
        words.append(f"D4RL score {record['normalized_score']:.1f}")
    if record.get("return_mean") is not None:
        words.append(f"return {record['return_mean']:.1f} +- {record['return_std']:.1f}")
    if record.get("max_reward_mean") is not None:
        words.append(f"highest reward {record['max_reward_mean']:.3f}")
    return ", ".join(words) if words else "no environment to score in"


def method_name(result: Mapping[str, Any]) -> str:
    """SAQ-IQL, or continuous iql."""
    quantized = result["actions"] == "quantized"
    name = f"SAQ-{result['agent'].upper()}" if quantized else f"continuous {result['agent']}"
    members = result.get("members") or 1
    return name if members == 1 else f"{name}, {members} members"


def act_words(record: Mapping[str, Any]) -> str:
    """How a policy acted, with its temperature where one counts: sample at temperature 0.5."""
    temperature = record.get("act_temperature") or 1.0
    told = record["act"] != "greedy" and temperature != 1
    return f"{record['act']} at temperature {temperature:g}" if told else str(record["act"])


def summary_text(result: Mapping[str, Any]) -> str:
    """What result.json says for a person: the score, the codes, where the time went, what next."""
    how = f"{result['episodes']} episodes, {act_words(result)}"
    lines = [f"{method_name(result)}: {score_words(result)}  ({how})"]
    beside = result.get("baseline") or {}
    if beside:
        lines.append(f"continuous BC on the same data: {score_words(beside)}")
        lines += _comparison(result, beside)
    if (error := result["held_out_action_error"]) is not None:
        other = beside.get("held_out_action_error")
        plain = "" if other is None else f" (continuous BC {100 * other:.0f} %)"
        lines.append(
            f"error of greedy actions on held-out episodes: {100 * error:.0f} %{plain} of "
            "the actions' deviation"
        )
    else:
        lines.append(
            "no episode was held out, so the error on recorded actions was not measured: "
            "--held-out 0.25 holds out a quarter"
        )
    if (skill := result.get("held_out_skill")) is not None:
        lines.append(
            f"skill: {100 * skill:.0f} % closer to recorded actions on held-out episodes "
            "than repeating the last command"
        )
    if report := result.get("quantizer"):
        lines.append(
            f"codes: {report['codes_used']} used, perplexity {report['perplexity']:.0f}, error "
            f"{100 * report['error_per_deviation']:.0f} % of the actions' deviation on "
            f"{report['measured_on']}"
        )
    lines += [time_text(result), f"run: {result['run']}"]
    if result["env"] == ROBOT:
        lines.append(f"next: saqrl export {result['run']} --out policy.onnx")
    elif result["env"]:
        video = " --video episode.mp4" if find_spec("imageio_ffmpeg") else ""
        lines.append(f"next: saqrl evaluate {result['run']} --episodes 100{video}")
    else:
        run = result["run"]
        lines.append(f"next: saqrl view {run}   or   saqrl export {run} --out policy.npz")
    if result.get("collected"):
        lines.append("your own data: saqrl inspect FILE, then saqrl train --dataset FILE")
    return "\n".join(lines)


def _comparison(result: Mapping[str, Any], beside: Mapping[str, Any]) -> list[str]:
    """By how much the two policies differ, and why."""
    lines = []
    ours, theirs = result.get("success_rate"), beside.get("success_rate")
    if ours is not None and theirs is not None:
        points = round(100 * (ours - theirs))
        name = method_name(result)
        if abs(points) < LEVEL:
            lines.append(f"{name} and continuous BC succeed equally often")
        else:
            more = "more" if points > 0 else "less"
            lines.append(f"{name} succeeds {abs(points)} points {more} than continuous BC")
        lines += _reason(result, points)
    return lines


def _reason(result: Mapping[str, Any], points: int) -> list[str]:
    """Why, of the demonstrations that the run has collected: only there it is known."""
    if result.get("collected") == "human" and points >= LEVEL:
        return [
            (
                "why: people pause before they grasp. In the same state most rows wait and some "
                "close the gripper: regression plays the mean and keeps waiting; a code is one "
                "of these actions"
            )
        ]
    if result.get("collected") == "expert" and abs(points) < LEVEL:
        return [
            (
                "why: these demonstrations are nearly identical; --style human varies them as "
                "people do"
            )
        ]
    return []


def time_text(result: Mapping[str, Any]) -> str:
    """Seconds in all and by stage."""
    took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result["seconds"].items())
    return f"time: {result['wall_seconds']:.0f} s ({took})"
