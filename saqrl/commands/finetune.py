"""`saqrl finetune`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from saqrl.commands.output import print_json, say
from saqrl.commands.parser import Word, parse
from saqrl.training.online.settings import OnlineSettings
from saqrl.training.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Finetune(OnlineSettings):
    """Fine-tune a quantized run in its environment, on its own and on new data."""

    run: Word
    """run folder to fine-tune"""
    out: str | None = None
    """new run folder; default: RUN-finetuned"""
    resume: bool = False
    """resume an interrupted fine-tuning"""
    dataset: str | None = None
    """SPEC of the run's data, if they were moved"""
    serve: str | None = None
    """HOST:PORT that a robot connects to; it acts instead of an environment; repeat this flag with
    --resume"""
    token_file: str | None = None
    """with --serve: file whose only line is the token that a robot must send; default:
    SAQRL_TOKEN"""
    json: bool = False
    """last line of stdout: the result as JSON"""

    examples: ClassVar[tuple[str, ...]] = (
        "saqrl finetune runs/cube-iql-seed0 --steps 50000",
        "saqrl finetune runs/cube-bc-seed0 --steps 50000 --agent iql --keep-offline 0.5",
        "saqrl finetune runs/arm-iql-seed0 --serve 127.0.0.1:8000 --steps 5000 --eval-episodes 5",
    )


def main(arguments: Sequence[str]) -> int:
    said = parse(Finetune, arguments)
    asked = OnlineSettings(
        **{each.name: getattr(said, each.name) for each in fields(OnlineSettings)}
    )
    from saqrl.commands.serve import token_in
    from saqrl.studies.run_page import leave_page
    from saqrl.training.online.address import Address
    from saqrl.training.online.finetune import default_out, finetune
    from saqrl.training.online.words import finetuned_text

    path = Path(said.run)
    out = default_out(path) if said.out is None else Path(said.out)
    reporter = Reporter()
    if asked.codebook == "grow" and asked.noise == 0:
        reporter.say(
            "note: with --noise 0 hardly a new code opens, because only actions that codes decode "
            "to are played: leave --noise out, or set it above 0"
        )
    finished = (out / "result.json").is_file()
    robot = said.serve and Address.of(said.serve, token_in(said.token_file))
    # Each dropped connection would be a traceback.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    result = finetune(
        path,
        asked,
        out,
        dataset=said.dataset,
        robot=robot or None,
        resume=said.resume,
        reporter=reporter,
    )
    page = leave_page(out, None, reporter, film=not finished)
    say(finetuned_text(result))
    if page is not None:
        say(f"page: {page}")
    if said.json:
        print_json(result)
    return 0
