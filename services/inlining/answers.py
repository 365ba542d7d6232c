"""From a request for advice to its answer: reads the module, asks for advice, and makes the artefact."""

from __future__ import annotations

import base64
import binascii
import math
from typing import Protocol

from services.inlining.advice import Advice, Policy, advise, annotated, changed_functions
from services.inlining.aims import AIMS, Aim
from services.inlining.engine import Level, Module, compile_module, inspect_module
from services.inlining.replay import Decision, as_mapping, replay_options
from services.inlining.sandbox import Limits
from services.inlining.schemas import (
    AdviceRequest,
    AdviceResponse,
    ArtefactOut,
    CandidateSize,
    FunctionSize,
    Goal,
    PredictedInstructions,
    SiteAdvice,
)
from services.inlining.source import to_bitcode
from services.inlining.speed import ir2perf
from shared.problems import InputError, PayloadTooLarge

MOST_CALLS = 60_000  # of a module advised while its sender waits; SQLite has 20,000


class NotAModule(InputError):
    code = "inlining-not-a-module"
    title = "The content is not what the format says"
    advice = "Say the right `format`; bitcode goes as Base64."


class ModuleTooLarge(PayloadTooLarge):
    code = "inlining-module-too-large"
    title = "The module has more calls than are advised on at once"
    advice = "Send its files one by one, or search with `tune`."


class ServedPolicy(Policy, Protocol):
    """The goal is the one that it was trained for."""

    @property
    def goal(self) -> Goal: ...


def answer_of(asked: AdviceRequest, policy: ServedPolicy, tag: str, limits: Limits) -> AdviceResponse:
    """Everything that is answered; raises the problems of source, engine and sandbox.

    A policy is asked for the goal alone that it was trained for; for the other one fixed thresholds are tried.
    """
    aim = AIMS[asked.goal]
    module = read_request(asked, aim.level, limits)
    if module.calls > MOST_CALLS:
        raise ModuleTooLarge(f"The module has {module.calls} calls; at most {MOST_CALLS} are taken. Use a tune job.")
    asked_of = policy if policy.goal == asked.goal else None
    advice = advise(module, asked_of, aim=aim, best_of=asked.best_of, seed=asked.seed, limits=limits)
    artefact = _artefact(asked, module, advice, aim, limits)
    return AdviceResponse(
        model=tag,
        goal=asked.goal,
        winner=advice.winner,
        text_stock=advice.stock.text,
        text_advised=advice.advised.text,
        functions=[FunctionSize(name=name, stock=was, advised=now) for name, was, now in changed_functions(advice)],
        instructions=_instructions(advice.cost) if asked.goal == "speed" else None,
        candidates=[
            CandidateSize(name=name, text=text, instructions_percent=_percent(cost) if asked.goal == "speed" else None)
            for name, text, cost in advice.candidates
        ],
        sites=_sites(advice),
        located=module.located,
        module_ir=None if module.located else module.code.decode("utf-8", "replace"),
        artefact=artefact,
        compiles=advice.compiles,
        cpu_seconds=round(advice.cpu_seconds, 3),
    )


def read_request(asked: AdviceRequest, level: Level, limits: Limits) -> Module:
    """The module that was sent."""
    if asked.format != "c" and (asked.files or asked.flags):
        raise InputError("Headers and flags are for C source.")
    match asked.format:
        case "c":
            data = to_bitcode(
                asked.content, name=asked.name, files=asked.files, flags=asked.flags, level=level, limits=limits
            )
        case "ir":
            data = asked.content.encode()
            if data[:2] == b"BC":
                raise NotAModule("This is bitcode; send it as Base64 with the format bitcode.")
        case "bitcode":
            try:
                data = base64.b64decode(asked.content, validate=True)
            except (binascii.Error, ValueError):
                raise NotAModule("The bitcode is not valid Base64.") from None
            if data[:4] not in (b"BC\xc0\xde", b"\xde\xc0\x17\x0b"):
                raise NotAModule("This is not bitcode: it does not begin with its mark (42 43 C0 DE).")
    module = inspect_module(data, limits=limits)
    if asked.goal == "speed" and module.minsize:
        raise InputError("The module was compiled for size (minsize); for the goal speed compile it with -O3.")
    return module


def _sites(advice: Advice) -> list[SiteAdvice]:
    stock = as_mapping(advice.stock.decisions)
    last: dict[tuple[str, str], Decision] = {}
    for decision in advice.decisions:
        last[decision.site.callee, decision.site.place] = decision
    mapping = advice.mapping
    rows: list[SiteAdvice] = []
    for decision in last.values():
        features, probability = advice.seen.get(decision.site, (None, None))
        inline = mapping[decision.site]
        confidence = None if probability is None else probability if inline else 1 - probability
        rows.append(
            SiteAdvice(
                caller=decision.caller,
                callee=decision.site.callee,
                place=decision.site.place,
                file=decision.file,
                line=decision.line,
                column=decision.column,
                inline=inline,
                stock=stock.get(decision.site),
                confidence=None if confidence is None else round(confidence, 4),
                features=features,
            )
        )
    return rows


def _percent(log_ratio: float) -> float:
    return round(100 * (math.exp(log_ratio) - 1), 2)


def _instructions(log_ratio: float) -> PredictedInstructions:
    return PredictedInstructions(percent=_percent(log_ratio), model=ir2perf().about)


def _artefact(asked: AdviceRequest, module: Module, advice: Advice, aim: Aim, limits: Limits) -> ArtefactOut:
    level = f"-O{aim.level}"
    match asked.artefact:
        case "replay":
            options = [part for option in replay_options("FILE") for part in ("-mllvm", option)]
            return ArtefactOut(
                kind="replay",
                media_type="text/plain",
                encoding="utf-8",
                content=advice.replay,
                text=advice.advised.text,
                # The places are those of line tables, which do not change the code.
                options=[level, "-gline-tables-only", *options] if advice.replay else [level],
            )
        case "annotated-ir":
            text, marks, compiled = annotated(module, advice, aim=aim, limits=limits)
            return ArtefactOut(
                kind="annotated-ir",
                media_type="text/x-llvm",
                encoding="utf-8",
                content=text,
                text=compiled.text,
                options=[level, "-x", "ir", "FILE"],
                calls_marked=marks,
            )
        case "object":
            image = advice.advised.object
            if aim.profiled:  # without the profile, which nobody else reads
                image = compile_module(
                    module.code, replay=advice.replay, level=aim.level, target=module.triple, limits=limits
                ).object
            return ArtefactOut(
                kind="object",
                media_type="application/x-object",
                encoding="base64",
                content=base64.b64encode(image).decode(),
                text=advice.advised.text,
                options=[],
            )
